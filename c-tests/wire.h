/*
 * wire.h: what the tests of the raw layer begin with: a connected Unix socket, broker's end and
 * backend's end, a TCP connection to hand over, and a token that the backend's store holds.
 */
#ifndef WIRE_H
#define WIRE_H

#include <signal.h>
#include <sys/socket.h>

#include "support.h"

struct wire {
    int type;            /**< SOCK_STREAM or SOCK_SEQPACKET. */
    int broker, backend; /**< The ends of the Unix socket. */
    int connection;      /**< The accepted TCP connection... */
    int client;          /**< ...and the client's end of it. */
    handoff_raw_token token;
    handoff_raw_store *store;
};

/** A test that begins with a struct wire as its state and must leave nothing open. */
#define STREAM_TEST(function) \
    {#function " (stream)", function, wire_open, wire_close, (void *)&wire_stream}
#define SEQPACKET_TEST(function) \
    {#function " (seqpacket)", function, wire_open, wire_close, (void *)&wire_seqpacket}
#define WIRE_TEST(function) STREAM_TEST(function), SEQPACKET_TEST(function)

extern const int wire_stream, wire_seqpacket;

int wire_open(void **state);
int wire_close(void **state);

/** Closes an end of a wire early. */
void close_end(int *end);

/** A path for a handoff socket in a fresh directory, for remove_directory(). */
struct place {
    char directory[64], path[80];
};

struct place make_place(void);

/** Listens with a type of socket, SOCK_STREAM or SOCK_SEQPACKET. */
handoff_raw_listener *listen_at(const char *path, int type);

/** Asserts that no descriptor of the TCP connection is open any more but the client's. */
void assert_client_sees_end(struct wire *wire);

/** Asserts that bytes written to a descriptor come out at the client. */
void assert_reaches_client(const struct wire *wire, int fd);

/** Asserts that a blocking or non-blocking socket has nothing to read. */
void assert_nothing_to_read(int socket);

/** The lowest descriptor that is free; with it as its RLIMIT_NOFILE a process can open no more. */
int lowest_free_descriptor(void);

/** A timer that interrupts system calls every two milliseconds; wire_close() stops it, too. */
void start_interrupting(void);
void stop_interrupting(void);

/** How often it has. */
extern volatile sig_atomic_t interruptions;

/** Where the timer's handler writes a byte for each signal, for another process; -1 is nowhere. */
extern volatile sig_atomic_t interruptions_pipe;

#endif
