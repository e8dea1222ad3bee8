/*
 * support.h: what all C tests need.
 *
 * Every test runs in a process of its own: a crash, a hang or a changed limit is the fault of that
 * test and of no other. It runs inside descriptors_before() and descriptors_after(), cmocka's setup
 * and teardown, which fail a test that leaves a descriptor open or closes one that it did not open.
 */
#ifndef SUPPORT_H
#define SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <stdio.h>
#include <sys/resource.h>
#include <sys/types.h>
#include <unistd.h>

#include <cmocka.h>
#include <handoff.h>

/* Whether this is built with a sanitizer, whose functions take the place of the C library's. */
#ifdef __has_feature
#if __has_feature(address_sanitizer)
#define __SANITIZE_ADDRESS__ 1
#endif
#if __has_feature(thread_sanitizer)
#define __SANITIZE_THREAD__ 1
#endif
#endif

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
enum { SANITIZED = 1 };
#else
enum { SANITIZED = 0 };
#endif

/** A cmocka test that must leave the set of open descriptors as it was. */
#define TEST(function) \
    cmocka_unit_test_setup_teardown(function, descriptors_before, descriptors_after)

int descriptors_before(void **state);
int descriptors_after(void **state);

/** How many descriptors below 4096 are open. */
int count_descriptors(void);

/**
 * Runs every test of an array, each in a child with its own process group, and prints what failed
 * and how many there were. Returns what main() returns.
 *
 * HANDOFF_TEST_ONLY runs only the tests that have it in their name; HANDOFF_TEST_LIMIT is how many
 * seconds a test may take, 300 if it is not set.
 */
#define RUN_TESTS(tests) run_program(__FILE__, (tests), sizeof(tests) / sizeof *(tests))

int run_program(const char *file, const struct CMUnitTest *tests, size_t count);

/** How long a test waits for something that must happen. Only a fault takes so long. */
enum { PATIENCE_MS = 60000 };

/**
 * Asserts a status, and that errno is left alone if that is neither an error nor HANDOFF_OK. On failure
 * prints both names and handoff_last_error().
 */
#define assert_status(call, expected) assert_status_at(call, expected, __FILE__, __LINE__)
#define assert_status_at(call, expected, file, line) \
    (mark_errno(), check_call((call), (expected), #call, (file), (line)))
#define assert_ok(call) assert_status(call, HANDOFF_OK)
#define assert_invalid(call) assert_status(call, HANDOFF_ERR_INVALID_ARGUMENT)

/** Asserts an invalid argument, and that the message contains a text. */
#define assert_invalid_because(call, text) \
    (assert_invalid(call), check_message((text), #call, __FILE__, __LINE__))

/** Asserts that handoff_last_error() contains a text. */
#define assert_last_error_has(text) \
    check_message((text), "handoff_last_error()", __FILE__, __LINE__)

void check_message(const char *text, const char *call, const char *file, int line);
void check_status(handoff_status got, handoff_status want, const char *call, const char *file,
                  int line);
void mark_errno(void);
void check_call(handoff_status got, handoff_status want, const char *call, const char *file,
                int line);

/** CLOCK_MONOTONIC in nanoseconds, and the milliseconds that have passed since then. */
uint64_t now_ns(void);
uint64_t ms_since(uint64_t start_ns);

/** Sleeps until so many milliseconds after a time of now_ns(), at least. */
void sleep_until(uint64_t start_ns, uint64_t ms);

/** Takes the next arrival or verdict; false if there is none. Any error fails the test. */
bool next_arrival(handoff_backend *backend, handoff_arrival *arrival);
bool next_verdict(handoff_broker *broker, handoff_verdict *verdict);

/** A fresh directory, removed with what is in it by remove_directory(). */
void make_directory(char path[64]);
void remove_directory(const char *path);

/** A connected pair of Unix sockets of a type, SOCK_STREAM or SOCK_SEQPACKET, close-on-exec. */
void make_pair(int type, int pair[2]);

/** A connected TCP pair on loopback: ends[0] accepted, ends[1] the client. */
void make_tcp_pair(int ends[2]);

/** The same with any protocol of the Internet that is like TCP; 0 if this kernel does not have it. */
int make_inet_pair(int ends[2], int protocol);

/** Asserts that two descriptors are of one open socket: the same SO_COOKIE. */
void assert_same_socket(int a, int b);

/** A Unix socket of a type, such as SOCK_SEQPACKET, that listens at a path, and accepts nobody. */
int listen_unix(const char *path, int type);

/** sendmsg(2) of any bytes with any descriptors, 253 at most: what a hostile peer can do. */
void send_raw(int socket, const void *bytes, size_t len, const int *fds, size_t fds_len);

/** fork(2); the child ends with this process, should a test fail before the child is done. */
pid_t start_child(void);

/** Waits for a child and asserts that it exited with 0. */
void assert_child_succeeds(pid_t child);

/** What a test asserts in a child, in one line. Exits with 1 when the condition is false. */
#define child_assert(condition)                                                        \
    do {                                                                               \
        if (!(condition)) {                                                            \
            fprintf(stderr, "%s:%d: in a child: %s is false: %s\n", __FILE__, __LINE__, \
                    #condition, handoff_last_error());                                 \
            _exit(1);                                                                  \
        }                                                                              \
    } while (0)

/** Fails a test, saying what to do about it, if this process is not root's. */
void need_root(void);

/** Valgrind emulates RLIMIT_NOFILE without the kernel's knowledge: skips a test under it. */
void skip_under_valgrind(const char *reason);

/** In a child: from now on a system call of this process returns an error, or 0 where that is 0. */
void refuse_system_call(unsigned int number, unsigned int error);

/** An ordinary user. Not 65534, which in a container is whoever has no number there. */
enum { NOBODY = 65533 };

/** Becomes NOBODY, in a child, without groups. Says so and exits with 99 if it can't. */
void become_nobody(void);

/** An address that is misaligned for every type but char: to be refused, never looked at. */
void *misaligned(void);

/** Sets the limit so that no descriptor can be opened. Returns it for allow_descriptors(). */
rlim_t allow_no_more_descriptors(void);
void allow_descriptors(rlim_t limit);

#endif
