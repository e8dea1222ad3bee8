/*
 * one_owner.h: what the driver of one_owner.c shares with its clients, which are in
 * one_owner_clients.c, with the brokers and backends that it starts, which are in one_owner_ends.c,
 * and with their TLS, which is in one_owner_tls.c.
 */
#ifndef ONE_OWNER_H
#define ONE_OWNER_H

#include <errno.h>
#include <handoff.h>
#include <handoff/tls.h>
#include <netinet/in.h>
#include <openssl/ssl.h>
#include <signal.h>
#include <stdatomic.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/types.h>
#include <time.h>
#include <unistd.h>

enum { MOST_BACKENDS = 4, MAX_AT_ONCE = 4096, MAX_PROCESSES = 1 << 16, PATIENCE_MS = 60000 };

#define MS INT64_C(1000000)

/** What is known of one connection. Processes are named by their numbers, which begin with 1. */
struct record {
    _Atomic uint32_t broker;   /* has read the connection's number */
    _Atomic uint32_t adopted;  /* has been told that it owns it */
    _Atomic uint32_t fallback; /* the broker has been told that it owns it */
    /** Has been told that it owns it, when another one had been; or has not found the whole request. */
    _Atomic uint32_t again;
    /** Has begun to adopt it, and was not refused. A backend and its successor have one each. */
    _Atomic uint32_t adopters[2 * MOST_BACKENDS];
};

/** Counts of all brokers. */
struct counts {
    _Atomic uint32_t failed_over;
};

/** How brokers reach their backends: by handles of one backend each, in turn, or by one handle. */
enum handles { ONE_EACH, DIRECTORY, ADDED, WAYS };

extern struct record *records;
extern struct counts *counts;
extern uint32_t connections, deadline_ms;
/** How long the rest of a request can take. */
extern int rest_ms;
extern int backends;
extern pid_t driver;
extern sigset_t terminate;
extern char directory[];

#define check(condition) ((condition) ? (void)0 : fail(#condition, __FILE__, __LINE__))

_Noreturn void fail(const char *condition, const char *file, int line);

int64_t now(void);

/** From 0 to `most` nanoseconds. */
int64_t any_time(int64_t most);

void socket_path(char path[64], int which);

/** What a client sends: the broker reads its number, and who owns it the rest. */
struct request {
    uint32_t number, rest;
};

struct request request_of(uint32_t number);

/** What "broker" or "backend" answers; returns how many bytes that is. */
size_t answer_of(char answer[64], const char *owner, uint32_t number);

/* ---- one_owner_ends.c ------------------------------------------------------------------------ */

/** Accepts connections and offers them, until it is killed. */
_Noreturn void run_broker(int listener, uint32_t me, enum handles handles);

/** Listens as backend `which`. Its adopters are at `place` of each record. */
_Noreturn void run_backend(int which, uint32_t me, int place);

/* ---- one_owner_clients.c --------------------------------------------------------------------- */

enum answer { BY_BROKER, BY_BACKEND, UNANSWERED, BROKER_KILLED, TWICE };

extern struct sockaddr_in address;
extern int epoll;
extern uint32_t brokers_killed;

void watch(int operation, int fd, uint32_t events, uint64_t data);

/** Connects. A place has one client at a time. */
void client_begin(uint32_t place, uint32_t number);

/** Sends the request once there is a connection, and reads after that. Returns whether it has come
    to its end. */
bool client_proceed(uint32_t place, uint32_t events);

uint32_t client_number(uint32_t place);
enum answer client_finish(uint32_t place);

/* ---- one_owner_tls.c ------------------------------------------------------------------------- */

/** Clients speak TLS, which the kernel does at the other end. */
extern bool tls;

/** Makes what both ends need, before there are processes. */
void tls_prepare(void);

/** An end for a non-blocking descriptor. */
SSL *tls_server(int fd);
SSL *tls_client(int fd, uint32_t number);

/** Goes on with the handshake. If it is not done, errno is EAGAIN, or the connection has ended. */
bool tls_handshake(SSL *end);

/** As read(2); also if the handshake is not done. EBADMSG if what has come is no TLS. */
ssize_t tls_read(SSL *end, void *bytes, size_t room);

/** Writes all of a few bytes. */
void tls_write(SSL *end, const void *bytes, size_t len);

/** Frees an end without a word to the other one, and leaves its descriptor open. */
void tls_release(SSL *end);

#endif
