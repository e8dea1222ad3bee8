/*
 * claim.pml: a slot of each channel's claim table, through several offers.
 *
 * A broker has one or two backends, and with each a word and a socket of their own. It offers one
 * connection after the other. What one backend does not adopt it takes back, and offers to the next
 * one or serves itself. Each process may die between any two of its steps, and what is in its
 * sockets then arrives or is lost; one that is stopped is one that takes no step for a while.
 * `make check-model` has spin visit every state, and then shows that it finds what is wrong with
 * three other protocols:
 *
 *   WITHOUT_CLAIM        no word: an acknowledgement and a deadline
 *   WITHOUT_TOKENS       a slot is used again as soon as its offer is revoked
 *   WITHOUT_TAKING_BACK  the next backend has the offer while the last one may still adopt it
 */

#ifndef BACKENDS
#define BACKENDS 2
#endif
#ifndef CONNECTIONS
#define CONNECTIONS 2
#endif

mtype = { NONE, OFFERED, ADOPTED, REVOKED, REJECTED };

/* The word of each channel. A d_step is one atomic step. */
byte generation[BACKENDS] = 0;
mtype state[BACKENDS] = NONE;

/* Who serves each connection; they count from 1. */
#define NOBODY      0
#define BROKER      1
#define BACKEND(b)  (2 + b)
byte owner[CONNECTIONS + 1] = NOBODY;

bool broker_lives = true;
bool backend_lives[BACKENDS] = true;

/* The connection that the broker has no verdict on, 0 for none, and the channel on which it is on
   offer. */
#define NOWHERE     BACKENDS
byte undecided = 0;
byte at = NOWHERE;

/* The arrival that each backend may still adopt; 0 for none. */
byte held[BACKENDS] = 0;

/* The sockets. Tokens are numbered; 0 is none, in a verdict of a backend that drains. */
chan offers[BACKENDS]   = [1] of { byte, byte, byte };  /* generation, connection, token */
chan verdicts[BACKENDS] = [1] of { mtype, byte, byte }; /* ADOPTED or REJECTED, generation,
                                                           next token */

/* Nobody else may have begun to serve it. */
inline serve(c, who) {
    assert(owner[c] == NOBODY);
    owner[c] = who
}

/* Broker: takes the connection back, unless the backend was first. */
inline revoke(b, g) {
    d_step {
        if
#ifdef WITHOUT_CLAIM
        :: true
#else
        :: generation[b] == g && state[b] == OFFERED -> state[b] = REVOKED
        :: else ->
            assert(generation[b] == g && state[b] == ADOPTED);
            assert(owner[undecided] == BACKEND(b));
            undecided = 0
#endif
        fi;
        at = NOWHERE
    }
}

/* Backend: takes connection c, unless the broker was first. */
inline adopt(b, g, c, outcome) {
    d_step {
        if
#ifdef WITHOUT_CLAIM
        :: true -> serve(c, BACKEND(b)); outcome = ADOPTED
#else
        :: generation[b] == g && state[b] == OFFERED ->
            state[b] = ADOPTED; serve(c, BACKEND(b)); outcome = ADOPTED
        :: else -> outcome = REJECTED
#endif
        fi;
        held[b] = 0
    }
}

/* The deadline, that of one attempt, or a cancel: at any moment. */
inline give_up(b, g, token) {
#ifdef WITHOUT_TAKING_BACK
    at = NOWHERE
#else
    revoke(b, g)
#endif
#ifdef WITHOUT_TOKENS
    ; token = 1
#endif
}

/* The two steps of an offer. Between them it may be taken back, and its token is good for another;
   the word is used again only if the backend can adopt nothing by it. */
#define MAY_OFFER(b)  (undecided != 0 && at == NOWHERE && !tried[b] && token[b] != 0)

inline put_on_offer(b) {
    d_step {
        assert(held[b] == 0 && empty(offers[b]));
        generation[b]++;
        state[b] = OFFERED;
        at = b;
        sent = false;
        tried[b] = true
    }
}

inline send_offer(b) {
    d_step { offers[b] ! generation[b], undecided, token[b]; token[b] = 0; sent = true }
}

/* A verdict brings the next token, also that on an offer which was settled before. */
inline take_verdict(b, outcome, about) {
    if
    :: at != b                          /* settled before */
    :: at == b ->
        assert(sent && about == generation[b]);
        if
        :: outcome == ADOPTED ->
            d_step { assert(owner[undecided] == BACKEND(b)); at = NOWHERE; undecided = 0 }
        :: outcome == REJECTED ->
            revoke(b, about);
            assert(undecided != 0)
        fi
    fi;
    d_step { outcome = NONE; about = 0 }
}

/* The word alone tells that the offer is adopted. Its verdict is still to come, and with it the next
   token. */
#define FINDS_ADOPTED(b)  (at == b && sent && state[b] == ADOPTED)

inline look(b) {
    d_step { assert(owner[undecided] == BACKEND(b)); at = NOWHERE; undecided = 0 }
}

#define LOST(b)  (at == b && !backend_lives[b] && empty(verdicts[b]))

proctype Broker() {
    byte c = 0, token[BACKENDS] = 1, about = 0;
    bool tried[BACKENDS] = false, sent = false;
    mtype outcome = NONE;
    {
        do
        :: undecided == 0 && c < CONNECTIONS ->
            d_step {
                c++;
                undecided = c;
                tried[0] = false;
#if BACKENDS > 1
                tried[1] = false
#endif
            }
        :: undecided == 0 && c == CONNECTIONS -> break
#ifndef WITHOUT_TAKING_BACK             /* which shall be found without the broker's help */
        :: undecided != 0 && at == NOWHERE ->
            d_step { serve(undecided, BROKER); undecided = 0 }
#endif
        :: MAY_OFFER(0) -> put_on_offer(0)
        :: at == 0 && !sent -> send_offer(0)
        :: at == 0 && !sent -> revoke(0, generation[0]); assert(undecided != 0)
        :: at == 0 && sent -> give_up(0, generation[0], token[0])
        :: atomic { verdicts[0] ? outcome, about, token[0] -> take_verdict(0, outcome, about) }
        :: atomic { FINDS_ADOPTED(0) -> look(0) }
        :: LOST(0) -> revoke(0, generation[0])
#if BACKENDS > 1
        :: MAY_OFFER(1) -> put_on_offer(1)
        :: at == 1 && !sent -> send_offer(1)
        :: at == 1 && !sent -> revoke(1, generation[1]); assert(undecided != 0)
        :: at == 1 && sent -> give_up(1, generation[1], token[1])
        :: atomic { verdicts[1] ? outcome, about, token[1] -> take_verdict(1, outcome, about) }
        :: atomic { FINDS_ADOPTED(1) -> look(1) }
        :: LOST(1) -> revoke(1, generation[1])
#endif
        od
    } unless { !broker_lives }
}

proctype Backend(byte b) {
    byte g = 0, c = 0, last = 0, token = 0, granted = 1;
    mtype outcome = NONE;
    {
end:    do
        :: atomic {
               offers[b] ? g, c, token ->
               /* A token works once, and generations go up. */
#ifndef WITHOUT_TOKENS
               assert(token == granted);
#endif
               assert(g > last);
               last = g;
               held[b] = g
           }
           if
           :: adopt(b, g, c, outcome)
           :: d_step { held[b] = 0; outcome = REJECTED }
           fi;
           atomic {
               if
               :: granted++
               :: granted = 0
               fi;
               verdicts[b] ! outcome, g, granted;
               g = 0; c = 0; token = 0; outcome = NONE
           }
        od
    } unless { !backend_lives[b] }
}

/* Each may die, at any moment, and take with it what it has sent. */
#define LOSES_OFFER(b)    !broker_lives && nempty(offers[b]) -> offers[b] ? _, _, _
#define LOSES_VERDICT(b)  !backend_lives[b] && nempty(verdicts[b]) -> verdicts[b] ? _, _, _

proctype Death() {
end:
    do
    :: broker_lives -> broker_lives = false
    :: backend_lives[0] -> backend_lives[0] = false
    :: d_step { LOSES_OFFER(0) }
    :: d_step { LOSES_VERDICT(0) }
#if BACKENDS > 1
    :: backend_lives[1] -> backend_lives[1] = false
    :: d_step { LOSES_OFFER(1) }
    :: d_step { LOSES_VERDICT(1) }
#endif
    od
}

init {
    atomic {
        run Broker();
        run Backend(0);
#if BACKENDS > 1
        run Backend(1);
#endif
        run Death()
    }
}

/* A broker that lives learns what became of each connection. */
ltl settled { [] ((undecided != 0) -> <> (undecided == 0 || !broker_lives)) }
