/*
 * scene.h: what the processes of a scenario share, and what each does in its part.
 *
 * A scenario is a broker and a backend, each a process of its own that runs to its end by itself.
 * The driver may kill one of them, stop it, or let one of its system calls fail, and starts
 * another in the place of one that was killed. So each part goes on whatever happens to the other,
 * and says in shared memory what it is about to do, or has been told, before it goes on.
 */
#ifndef SCENE_H
#define SCENE_H

#include <handoff.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>

enum side { BROKER, BACKEND, SIDES };

/** What the backend is to do with a connection. */
enum wish {
    ADOPT,
    REJECT,
    /* Keep it until the broker has taken it back. */
    HOLD,
};

/** What the broker has been told. Raw layer: of an unknown owner if the socket is unusable. */
enum outcome { UNSETTLED, TAKEN_BACK, FALLBACK, ADOPTED, UNKNOWN };

/** One client's connection. */
struct connection {
    uint64_t cookie; /* SO_COOKIE of the end that is handed over */
    _Atomic uint32_t offered; /* the broker has begun to offer it */
    _Atomic uint32_t outcome;
    _Atomic uint32_t seen;    /* the backend knows of it */
    _Atomic uint32_t adopter; /* the backend has begun to adopt it, and was not refused */
    _Atomic uint32_t adopted; /* the backend has been told that it owns it */
};

/** The connections of one broker; another begins with ones of its own. */
enum { CONNECTIONS = 4, BROKERS = 2, FIRST_FD = 3, PROBE = 1000 };

struct scene {
    char path[80];
    /** How long an offer may take, in milliseconds. */
    uint64_t timeout_ms;
    /** The error of the one system call that fails; 0 if none does. */
    int injected;
    /** And of a second one. */
    _Atomic int injected_too;
    /** The backend is killed: it may not live to answer. */
    bool backend_dies;
    /** Of a scenario without faults: every offer must have the outcome that is wished. */
    bool undisturbed;
    /** The call of the library in which each side is; NULL in its own code. */
    const char *_Atomic call[SIDES];
    /** How often each has made it. */
    _Atomic uint32_t calls[SIDES];
    /** How many descriptors each side has open while it does nothing; 0 if it is not known. */
    _Atomic uint32_t idle[SIDES];
    /** The error that a call reported last, and how many did. */
    _Atomic int32_t status[SIDES];
    _Atomic uint32_t errors[SIDES];
    /** The first connection of the broker that runs. */
    _Atomic uint32_t base;
    /** The broker that ran has been killed: the backend keeps what nobody else can have. */
    _Atomic uint32_t brokers_killed;
    _Atomic uint32_t listening;
    /** Waiting: 1 more than the first connection of the broker for which the backend has ended its
        handle and made another. */
    _Atomic uint32_t ended_for;
    /** The broker is done: the backend may end. */
    _Atomic uint32_t finish;
    /** The backend accepts: it may begin to adopt any connection. And it was killed so. */
    _Atomic uint32_t accepting, accepting_when_killed;
    /** Raw layer: the next message has a token that the broker made, this one. */
    _Atomic uint32_t token_is_told;
    handoff_raw_token token;
    struct connection connections[BROKERS * CONNECTIONS];
};

extern struct scene *scene;

/** A scenario. Its parts return when they are done; they find the broker's connections at FIRST_FD
    and after. */
struct scenario {
    const char *name;
    void (*broker)(void);
    void (*backend)(void);
    enum wish wishes[CONNECTIONS];
};

extern const struct scenario channel_scenario, waiting_scenario, raw_scenario;

/** Which side this process is. */
extern enum side me;

/** Makes a call of the library that returns a status or a descriptor. */
#define CALL(call) (enter(#call), leave(call))
#define CALL_FD(call) (enter(#call), leave_fd(call))
#define CALL_VOID(call) (enter(#call), (call), (void)leave(HANDOFF_OK))

void enter(const char *call);
handoff_status leave(handoff_status status);
int leave_fd(int fd);

#define check(condition) \
    ((condition) ? (void)0 : failed(#condition, __FILE__, __LINE__))

/** Says what is not as it must be, and ends the process. */
_Noreturn void failed(const char *condition, const char *file, int line);

/** The owner's answer to the client, which is the end of the connection. */
void answer(int fd, char by);

/** Broker: settles a connection. It has no other verdict. */
void settle(uint32_t number, enum outcome outcome, bool may_have_reached);
bool is_settled(uint32_t number);

/** Broker: makes a client whose answer it reads itself. Returns the end to offer. */
int begin_probe(int *client);
/** Whether the backend answered it; if it was killed meanwhile it did not. */
bool end_probe(int client, int fd, bool adopted);

/** Backend: whether what it holds can be nobody else's, because its broker was killed or settled
    it. */
bool is_decided(uint32_t number);

/** Backend: begins to adopt, and tells what came of it. */
void adopting(uint32_t number);
void adopted(uint32_t number, int fd, bool is_adopted);

/** Raw layer: the connection that a descriptor is of; PROBE for any other. */
uint32_t number_of(int fd);
/** Raw layer: asserts that the cause of a fallback is a status like any other. */
void check_cause(handoff_status cause);

uint64_t cookie_of(int socket);

/** Waits for a millisecond, in which others go on. */
void pause_shortly(void);

/** Asserts that as many descriptors are open as in the undisturbed scenario, now or after some turns
    of a handle. */
void check_idle(void (*turn)(void));
unsigned open_descriptors(void);

#endif
