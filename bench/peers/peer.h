/*
 * What the peers have in common, and the C ones share as code.
 *
 * A peer is one program, the broker, which starts its backend. What it shall do stands in the
 * environment:
 *
 *   MODE=serve  accept TCP clients, read the request of each (200 bytes), and bring it to the
 *               backend, which answers. The broker prints "port N" when it listens. A peer that
 *               moves the connection moves a token of 16 bytes and the request with it; the backend
 *               answers, closes its copy and sends the token back; then the broker closes its own.
 *   MODE=move   the moving alone: IN_FLIGHT accepted connections are offered again and again, each
 *               as soon as the last offer is acknowledged, with a token and PREREAD (200) bytes.
 *               The backend closes what it gets and acknowledges.
 *
 *   WARM, COUNT handoffs before the measurement, and in it
 *   IN_FLIGHT   the most in flight (256)
 *   HOLD        so many arrivals are kept by the backend before it acknowledges any
 *   ANSWER      bytes in the body of an answer, 128; above 64 KiB a multiple of it
 *   BACKEND_CPU where the backend runs, if it may not run everywhere
 *   MANY        descriptors a message
 *   GATHER=1    acknowledgements that are due together are sent together
 *   CHANNELS    channels in turn
 *   BACKENDS    backends of the broker, all in one process
 *   PARTS       packets for what may be in flight
 *   EPOLL_SET=1 each side waits for one descriptor, an epoll set
 *   BLOCKING=1  no event loop: each side waits in the call that receives
 *   SPIN        microseconds for which such a call looks before it sleeps; these eight only where
 *               the peer can
 *
 * At its end each side prints a line: "broker" or "backend", nanoseconds from the first measured
 * handoff to the last, nanoseconds of processor time in between, and its peak memory in KiB.
 */
#ifndef PEER_H
#define PEER_H

#include "../common.h"

#include <stddef.h>

enum {
    TOKEN = 16,
    REQUEST = 200,
    MOST_PREREAD = 65536,
    MOST_PIECE = 65536,
    MOST_MANY = 252,
    MOST_CLIENTS = 16384,
    MOST_CONNECTIONS = 1024 /* that MODE=move makes; above, one is on offer many times */
};

extern int is_move, count, warm, in_flight, preread, hold, answer_len, many, gather, channels;
extern int backends, packets, epoll_set, blocking, spin;

/* Something in the broker's event loop. */
struct source {
    int fd;
    void (*ready)(struct source *source);
};

/* A connection that the broker has accepted. */
struct client {
    struct source source;
    int slot;                     /* the token names it */
    struct client *next;          /* of those that wait to be offered */
    const unsigned char *preread; /* so many bytes as the parameter says */
    unsigned char request[REQUEST];
};

struct peer {
    /* Before the backend is started; may be NULL. */
    void (*prepare)(void);
    /* In the broker, with its end of a socket pair. */
    void (*begin)(int socket);
    /* Hands a client over, or brings it to the backend in another way. Not 0: it was taken, and
     * settle() will be called. 0: there is no room before the next acknowledgement. */
    int (*offer)(struct client *client);
    /* What was offered must be on its way now. May be NULL. */
    void (*flush)(void);
    /* What to watch for acknowledgements in an event loop. NULL if there are none. */
    int (*watched)(void);
    /* Reads acknowledgements and calls settle() for each; it may be told to wait for the first. */
    void (*dispatch)(int may_wait);
    /* The process of the backend, with its end of the socket pair. */
    void (*backend)(int socket);
};

int run_peer(const struct peer *peer);

/* For brokers that run_peer() runs. */
void watch(struct source *source);
void unwatch(struct source *source);
void settle(struct client *client);
void token_for(const struct client *client, unsigned char token[TOKEN]);
struct client *client_of(const unsigned char token[TOKEN]);

/* For backends. The first counts an arrival; not 0: it was the last. */
int arrived(void);
/* Whether a loop looks for what has come before it waits: with one in flight nothing can be there
 * but the answer to what it has just sent, for which it would have to look for a while. */
int looks_first(int may_wait);
/* An answer of HTTP, so that nginx can stand between. */
void answer(int fd);
void answer_bytes(char **bytes, size_t *len);
/* What the backend does with a connection that is its own now. */
void serve(int fd);

/* For peers with a loop of their own: starts the backend, and returns the broker's end of a socket
 * pair; counts, as arrived() does; reports, and waits for the backend; tells where it listens. */
int begin_peer(void (*prepare)(void), void (*backend)(int socket));
int settled(void);
int end_peer(void);
void announce(int port);

/* For a backend whose broker is another program. */
int run_backend(void (*backend)(int socket));

#endif
