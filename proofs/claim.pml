/*
 * claim.pml: one slot of a channel's claim table, through several offers.
 *
 * A broker and a backend share one word and a socket. Either may die between any two of its steps,
 * and what is in the socket then arrives or is lost. Each generation is one connection, the
 * broker's at first. `make check-model` has spin visit every state, and then shows that it finds
 * what is wrong with two other protocols:
 *
 *   WITHOUT_CLAIM   no word: an acknowledgement and a deadline
 *   WITHOUT_TOKENS  a slot is used again as soon as its offer is revoked
 */

#ifndef GENERATIONS
#define GENERATIONS 4
#endif

mtype = { NONE, OFFERED, ADOPTED, REVOKED, REJECTED };

/* The word. A d_step is one atomic step. */
byte generation = 0;
mtype state = NONE;

/* Whose the connections are, a bit for each generation. */
byte brokers = 0;
byte backends = 0;
#define BIT(g)    (1 << (g))
#define HAS(w, g) ((w & BIT(g)) != 0)

bool broker_lives = true;
bool backend_lives = true;

/* The offer that the broker has no verdict on, and the arrival that the backend may still adopt;
   0 for none. */
byte in_flight = 0;
byte held = 0;

/* The socket. Tokens are numbered; 0 is none, in a verdict of a backend that drains. */
chan offers   = [1] of { byte, byte };          /* generation, token */
chan verdicts = [1] of { mtype, byte, byte };   /* ADOPTED or REJECTED, generation, next token */

#define NEVER_TWO_OWNERS  assert((brokers & backends) == 0)
#define NEVER_NONE(g)     assert(HAS(brokers, g) || HAS(backends, g))

/* Broker: takes connection g back, unless the backend was first. Then its caller has a verdict. */
inline revoke(g) {
    d_step {
        if
#ifdef WITHOUT_CLAIM
        :: true -> brokers = brokers | BIT(g)
#else
        :: generation == g && state == OFFERED -> state = REVOKED; brokers = brokers | BIT(g)
        :: else -> assert(generation == g && state == ADOPTED)
#endif
        fi;
        in_flight = 0;
        NEVER_TWO_OWNERS;
        NEVER_NONE(g)
    }
}

/* Backend: takes connection g, unless the broker was first. */
inline adopt(g, outcome) {
    d_step {
        if
#ifdef WITHOUT_CLAIM
        :: true -> backends = backends | BIT(g); outcome = ADOPTED
#else
        :: generation == g && state == OFFERED ->
            state = ADOPTED; backends = backends | BIT(g); outcome = ADOPTED
        :: else -> outcome = REJECTED
#endif
        fi;
        held = 0;
        NEVER_TWO_OWNERS
    }
}

active proctype Broker() {
    byte g = 0, token = 1, about;
    mtype outcome;
    {
        do
        :: g < GENERATIONS && token != 0 ->
            g++;
            d_step {
                /* The backend can adopt nothing in this slot any more. */
                assert(held == 0 && empty(offers));
                generation = g; state = OFFERED;
                in_flight = g
            }
            if
            :: revoke(g);               /* before it was sent: the token is good for another */
               assert(HAS(brokers, g))
            :: offers ! g, token;
               token = 0;
               do
               :: in_flight != 0 ->     /* the deadline, or a cancel: at any moment */
                  revoke(g)
#ifdef WITHOUT_TOKENS
                  ; token = 1; break
#endif
               :: verdicts ? outcome, about, token ->
                  assert(about == g);
                  if
                  :: in_flight == 0     /* settled before */
                  :: in_flight != 0 && outcome == ADOPTED ->
                     d_step { assert(HAS(backends, g)); in_flight = 0 }
                  :: in_flight != 0 && outcome == REJECTED ->
                     revoke(g);
                     assert(HAS(brokers, g))
                  fi;
                  break
               :: !backend_lives && empty(verdicts) ->
                  if
                  :: in_flight != 0 -> revoke(g)
                  :: else
                  fi;
                  break
               od
            fi
        :: else -> break                /* enough of them, or no token */
        od
    } unless { !broker_lives }
}

active proctype Backend() {
    byte g, last = 0, token, granted = 1;
    mtype outcome;
    {
end:    do
        :: offers ? g, token ->
            d_step {
                /* A token works once, and generations go up. */
#ifndef WITHOUT_TOKENS
                assert(token == granted);
#endif
                assert(g > last);
                last = g;
                held = g
            }
            if
            :: adopt(g, outcome)
            :: d_step { held = 0; outcome = REJECTED }
            fi;
            if
            :: granted++; verdicts ! outcome, g, granted
            :: granted = 0; verdicts ! outcome, g, 0
            fi
        od
    } unless { !backend_lives }
}

/* Either side may die, at any moment, and take with it what it has sent. */
active proctype Death() {
    do
    :: broker_lives -> broker_lives = false
    :: backend_lives -> backend_lives = false
    :: d_step { !broker_lives && nempty(offers) -> offers ? _, _ }
    :: d_step { !backend_lives && nempty(verdicts) -> verdicts ? _, _, _ }
    :: break
    od
}

/* A broker that lives learns what became of each offer. */
ltl settled { [] ((in_flight != 0) -> <> (in_flight == 0 || !broker_lives)) }
