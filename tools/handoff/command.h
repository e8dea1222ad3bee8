/* What the parts of handoff(1) share. */
#ifndef HANDOFF_COMMAND_H
#define HANDOFF_COMMAND_H

#include <stdio.h>
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/* Exit codes, as handoff(1) lists them. Those above 2 are about what `handoff check` found: each is
 * one thing that can be wrong. */
enum {
    DONE = 0,
    FAILED = 1, /* the system or the library refused something */
    USAGE = 2,
    NO_PATH = 3,
    NO_SEARCH = 4,
    NO_SOCKET = 5,
    NOBODY_LISTENS = 6,
    WRONG_TYPE = 7,
    NO_ACCESS = 8,
    NOT_ALLOWED = 9,
    TOO_MANY = 10,
    NO_HANDOFF = 11,
    WRONG_VERSION = 12,
    IS_DRAINING = 13,
    NO_ANSWER = 14,
    NOT_TRUSTED = 15,
    NO_ROOM = 16,
    IS_SHORT = 17, /* the backend, of descriptors or memory */
    NOT_EXECUTABLE = 126, /* as env(1) and others say it */
    NOT_FOUND = 127
};

/* The subcommands. argv[0] is the subcommand's name; the result is the exit code. */
int check_main(int argc, char **argv);
int broker_main(int argc, char **argv);
int exec_main(int argc, char **argv);

/* Prints what the subcommand does, or all of them, and how they are called. */
int print_help(void);

/* ---- support.c ------------------------------------------------------------------------------- */

/* "check", "broker", "exec" or "": how messages begin. */
extern const char *subcommand;

/*
 * Writes text in which control characters are '?': whoever can make a socket in a directory chooses
 * its name, and that may not forge a line or reach the terminal.
 */
void write_plainly(FILE *to, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Writes "handoff check: TEXT" and a newline to standard error. */
void complain(const char *format, ...) __attribute__((format(printf, 1, 2)));

/* Says how the subcommand is called; its result is USAGE. */
int usage(const char *text);

/* Whether the path has nginx's "unix:" before it, which it says. Without that check it would be the path
 * of a directory "unix:". */
bool is_of_nginx(const char *path);

/* Ends the program if something failed that cannot fail in normal operation; errno says why. */
void must(bool ok, const char *what);
/* The same for a call of libhandoff. */
void must_handoff(bool ok, const char *what);

/* Monotonic time in microseconds. */
int64_t now_us(void);

/* Reads a whole decimal number in these bounds. */
bool parse_number(const char *text, uint64_t least, uint64_t most, uint64_t *number);

/* A user or a group by name or number. */
bool find_user(const char *text, uint32_t *user);
bool find_group(const char *text, uint32_t *group);
/* "www-data (33)", or "33" for one without a name. */
void describe_user(uid_t user, char *text, size_t size);
void describe_group(gid_t group, char *text, size_t size);

/* Opens /dev/null where standard input, output or error is closed, so that no socket gets their
 * numbers. */
void keep_standard_descriptors(void);
/* A descriptor for each client: as many as the hard limit allows. A command that is run gets the
 * limit back that was there, if the hard limit still allows it: a client is adopted then. */
void raise_descriptor_limit(void);
void restore_descriptor_limit(void);

/* Flushes standard output; finish_output() says what went wrong. */
void flush_output(void);
/* Flushes it for the last time. False, with a message, if something that was printed is lost. */
bool finish_output(void);

#endif
