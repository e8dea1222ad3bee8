/* What `handoff check` found about one socket, and how it is printed. */
#ifndef HANDOFF_REPORT_H
#define HANDOFF_REPORT_H

#include <stdbool.h>
#include <stdint.h>

#include <handoff.h>

enum { STEPS = 80, TEXT_LEN = 1024 };

struct step {
    const char *name;
    bool ok;
    char text[TEXT_LEN];
};

struct report {
    char socket[256];
    struct step steps[STEPS];
    int steps_len;
    int code; /* the exit code */
    handoff_status status;
    int error;              /* errno, or 0 */
    char message[TEXT_LEN]; /* what is wrong: a sentence, or "" */
    char advice[TEXT_LEN];  /* what to do: a sentence, or "" */
    int64_t round_trip_us;  /* -1: none was measured */
};

/* Steps are printed as they are done, or later as a part of the JSON object. */
extern bool report_json;

struct report *report_new(const char *socket);
void report_free(struct report *report);

/* A step that is in order. */
void step_ok(struct report *report, const char *name, const char *format, ...)
    __attribute__((format(printf, 3, 4)));

/* The step that is not, and with it the result: the sentence in `message`. Advice comes next. */
void step_failed(struct report *report, const char *name, int code, handoff_status status,
                 int error, const char *format, ...) __attribute__((format(printf, 6, 7)));
void advise(struct report *report, const char *format, ...) __attribute__((format(printf, 2, 3)));

/* Prints the end of a report: what to do, or the round-trip time. */
void report_print_end(const struct report *report);

/* Prints a report as one JSON object. `inner`, if it is not NULL, are the reports of the sockets in
 * the directory that this one is about. */
void report_print_json(const struct report *report, struct report *const *inner, int inner_len);

#endif
