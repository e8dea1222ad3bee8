/* How `handoff check` prints what it found: lines for people, or JSON. */
#define _GNU_SOURCE
#include "report.h"

#include "command.h"

#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

bool report_json;

struct report *report_new(const char *socket)
{
    struct report *report = calloc(1, sizeof *report);
    must(report != NULL, "calloc");
    snprintf(report->socket, sizeof report->socket, "%s", socket);
    report->round_trip_us = -1;
    return report;
}

void report_free(struct report *report)
{
    free(report);
}

/* A path can have anything in it, but what is printed must not control the terminal. */
static void print_line(const char *text)
{
    write_plainly(stdout, "%s", text);
    putchar('\n');
}

static void add_step(struct report *report, const char *name, bool ok, const char *format,
                     va_list arguments)
{
    /* A path of 107 bytes has at most 54 directories. */
    struct step *step = &report->steps[report->steps_len < STEPS ? report->steps_len++ : STEPS - 1];
    step->name = name;
    step->ok = ok;
    vsnprintf(step->text, sizeof step->text, format, arguments);
    if (report_json)
        return;
    printf("%-6s  %-11s  ", ok ? "ok" : "FAILED", name);
    print_line(step->text);
    flush_output(); /* the next step may take its time */
}

void step_ok(struct report *report, const char *name, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    add_step(report, name, true, format, arguments);
    va_end(arguments);
}

void step_failed(struct report *report, const char *name, int code, handoff_status status,
                 int error, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    add_step(report, name, false, format, arguments);
    va_end(arguments);
    report->code = code;
    report->status = status;
    report->error = error;
    memcpy(report->message, report->steps[report->steps_len - 1].text, sizeof report->message);
}

void advise(struct report *report, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    vsnprintf(report->advice, sizeof report->advice, format, arguments);
    va_end(arguments);
}

void report_print_end(const struct report *report)
{
    if (report->code != DONE) {
        printf("%-6s  %-11s  ", "", "what to do");
        print_line(report->advice);
    } else if (report->round_trip_us >= 0) {
        printf("round trip: %lld us\n", (long long)report->round_trip_us);
    }
}

/* ---- JSON ------------------------------------------------------------------------------------ */

/* The length of the UTF-8 sequence at `text`, or 0 if it is none. */
static int utf8_len(const unsigned char *text)
{
    int len = text[0] < 0x80                      ? 1
              : text[0] >= 0xc2 && text[0] < 0xe0 ? 2
              : text[0] >= 0xe0 && text[0] < 0xf0 ? 3
              : text[0] >= 0xf0 && text[0] < 0xf5 ? 4
                                                  : 0;
    for (int i = 1; i < len; i++)
        if ((text[i] & 0xc0) != 0x80)
            return 0; /* also at the end of the string */
    /* Not the shortest form, half of a surrogate pair, beyond the last character. */
    if ((text[0] == 0xe0 && text[1] < 0xa0) || (text[0] == 0xed && text[1] >= 0xa0) ||
        (text[0] == 0xf0 && text[1] < 0x90) || (text[0] == 0xf4 && text[1] >= 0x90))
        return 0;
    return len;
}

static void print_string(const char *text)
{
    const unsigned char *at = (const unsigned char *)text;
    putchar('"');
    while (*at != '\0') {
        int len = utf8_len(at);
        if (len == 0)
            fputs("\\ufffd", stdout);
        else if (*at == '"' || *at == '\\')
            printf("\\%c", *at);
        else if (*at < 0x20 || *at == 0x7f)
            printf("\\u%04x", *at);
        else
            fwrite(at, 1, (size_t)len, stdout);
        at += len == 0 ? 1 : len;
    }
    putchar('"');
}

static void print_member(const char *name, const char *text)
{
    printf(", \"%s\": ", name);
    print_string(text);
}

void report_print_json(const struct report *report, struct report *const *inner, int inner_len)
{
    fputs("{\"socket\": ", stdout);
    print_string(report->socket);
    printf(", \"ok\": %s, \"code\": %d", report->code == DONE ? "true" : "false", report->code);
    print_member("status", handoff_status_name(report->status));
    printf(", \"error\": %d", report->error);
    print_member("message", report->message);
    print_member("advice", report->advice);
    if (report->round_trip_us >= 0)
        printf(", \"round_trip_us\": %lld", (long long)report->round_trip_us);
    else
        fputs(", \"round_trip_us\": null", stdout);
    fputs(", \"steps\": [", stdout);
    for (int i = 0; i < report->steps_len; i++) {
        const struct step *step = &report->steps[i];
        printf("%s{\"ok\": %s", i > 0 ? ", " : "", step->ok ? "true" : "false");
        print_member("step", step->name);
        print_member("text", step->text);
        putchar('}');
    }
    putchar(']');
    if (inner != NULL) {
        fputs(", \"sockets\": [", stdout);
        for (int i = 0; i < inner_len; i++) {
            if (i > 0)
                fputs(", ", stdout);
            report_print_json(inner[i], NULL, 0);
        }
        putchar(']');
    }
    putchar('}');
}
