/*
 * support.h: what all C tests need.
 *
 * Every test is run inside descriptors_before() and descriptors_after(): cmocka's setup and
 * teardown, which fail a test that leaves a descriptor open or closes one that it did not open.
 */
#ifndef SUPPORT_H
#define SUPPORT_H

#include <setjmp.h>
#include <stdarg.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/resource.h>
#include <sys/types.h>

#include <cmocka.h>
#include <handoff.h>

/** A cmocka test that must leave the set of open descriptors as it was. */
#define TEST(function) \
    cmocka_unit_test_setup_teardown(function, descriptors_before, descriptors_after)

int descriptors_before(void **state);
int descriptors_after(void **state);

/** Asserts a status; on failure prints both names and handoff_last_error(). */
#define assert_status(call, expected) check_status((call), (expected), #call, __FILE__, __LINE__)
#define assert_ok(call) assert_status(call, HANDOFF_OK)
#define assert_invalid(call) assert_status(call, HANDOFF_ERR_INVALID_ARGUMENT)

void check_status(handoff_status got, handoff_status want, const char *call, const char *file,
                  int line);

/** A fresh directory, removed with what is in it by remove_directory(). */
void make_directory(char path[64]);
void remove_directory(const char *path);

/** A connected pair of Unix sockets of a type, SOCK_STREAM or SOCK_SEQPACKET, close-on-exec. */
void make_pair(int type, int pair[2]);

/** A connected TCP pair on loopback: ends[0] accepted, ends[1] the client. */
void make_tcp_pair(int ends[2]);

/** Asserts that two descriptors are of one open socket: the same SO_COOKIE. */
void assert_same_socket(int a, int b);

/** sendmsg(2) of any bytes with any descriptors, 253 at most: what a hostile peer can do. */
void send_raw(int socket, const void *bytes, size_t len, const int *fds, size_t fds_len);

/** Waits for a child and asserts that it exited with 0. */
void assert_child_succeeds(pid_t child);

/** Becomes an ordinary user, in a child: nobody (65534), without groups. Says so and exits with 99
    if it can't. */
void become_nobody(void);

/** An address that is misaligned for every type but char: to be refused, never looked at. */
void *misaligned(void);

/** Sets the limit so that no descriptor can be opened; returns the limit for allow_descriptors(). */
rlim_t allow_no_more_descriptors(void);
void allow_descriptors(rlim_t limit);

#endif
