/* Small things that every subcommand needs. */
#define _GNU_SOURCE
#include "command.h"

#include <ctype.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <pwd.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <time.h>
#include <unistd.h>

#include <handoff.h>

const char *subcommand = "";

static void write_arguments(FILE *to, const char *format, va_list arguments)
{
    char text[2048];
    vsnprintf(text, sizeof text, format, arguments);
    for (char *at = text; *at != '\0'; at++)
        if (iscntrl((unsigned char)*at))
            *at = '?';
    fputs(text, to);
}

void write_plainly(FILE *to, const char *format, ...)
{
    va_list arguments;
    va_start(arguments, format);
    write_arguments(to, format, arguments);
    va_end(arguments);
}

void complain(const char *format, ...)
{
    va_list arguments;
    fprintf(stderr, "handoff%s%s: ", *subcommand == '\0' ? "" : " ", subcommand);
    va_start(arguments, format);
    write_arguments(stderr, format, arguments);
    va_end(arguments);
    fputc('\n', stderr);
}

int usage(const char *text)
{
    fprintf(stderr, "usage: %s\n       `handoff --help' and handoff(1) say more.\n", text);
    return USAGE;
}

bool is_of_nginx(const char *path)
{
    if (strncmp(path, "unix:", 5) != 0)
        return false;
    complain("\"unix:\" belongs to nginx's configuration, write %s", path + 5);
    return true;
}

void must(bool ok, const char *what)
{
    if (ok)
        return;
    complain("%s: %s", what, strerror(errno));
    exit(FAILED);
}

void must_handoff(bool ok, const char *what)
{
    if (ok)
        return;
    complain("%s: %s", what, handoff_last_error());
    exit(FAILED);
}

int64_t now_us(void)
{
    struct timespec now;
    must(clock_gettime(CLOCK_MONOTONIC, &now) == 0, "clock_gettime");
    return (int64_t)now.tv_sec * 1000000 + now.tv_nsec / 1000;
}

bool parse_number(const char *text, uint64_t least, uint64_t most, uint64_t *number)
{
    char *end;
    if (*text < '0' || *text > '9')
        return false; /* strtoull takes spaces and signs */
    errno = 0;
    unsigned long long value = strtoull(text, &end, 10);
    if (errno != 0 || *end != '\0' || value < least || value > most)
        return false;
    *number = value;
    return true;
}

bool find_user(const char *text, uint32_t *user)
{
    uint64_t number;
    const struct passwd *entry = getpwnam(text);
    if (entry == NULL && !parse_number(text, 0, UINT32_MAX - 1, &number))
        return false;
    *user = entry != NULL ? (uint32_t)entry->pw_uid : (uint32_t)number;
    return true;
}

bool find_group(const char *text, uint32_t *group)
{
    uint64_t number;
    const struct group *entry = getgrnam(text);
    if (entry == NULL && !parse_number(text, 0, UINT32_MAX - 1, &number))
        return false;
    *group = entry != NULL ? (uint32_t)entry->gr_gid : (uint32_t)number;
    return true;
}

static void describe(const char *name, unsigned long number, char *text, size_t size)
{
    if (name != NULL)
        snprintf(text, size, "%.60s (%lu)", name, number);
    else
        snprintf(text, size, "%lu", number);
}

void describe_user(uid_t user, char *text, size_t size)
{
    const struct passwd *entry = getpwuid(user);
    describe(entry == NULL ? NULL : entry->pw_name, user, text, size);
}

void describe_group(gid_t group, char *text, size_t size)
{
    const struct group *entry = getgrgid(group);
    describe(entry == NULL ? NULL : entry->gr_name, group, text, size);
}

void keep_standard_descriptors(void)
{
    int fd;
    do {
        fd = open("/dev/null", O_RDWR);
        must(fd != -1, "/dev/null");
    } while (fd <= STDERR_FILENO);
    close(fd);
}

static struct rlimit descriptors;

void raise_descriptor_limit(void)
{
    must(getrlimit(RLIMIT_NOFILE, &descriptors) == 0, "getrlimit");
    struct rlimit raised = {descriptors.rlim_max, descriptors.rlim_max};
    must(setrlimit(RLIMIT_NOFILE, &raised) == 0, "setrlimit");
}

void restore_descriptor_limit(void)
{
    struct rlimit now;
    if (getrlimit(RLIMIT_NOFILE, &now) == -1)
        return;
    now.rlim_cur = descriptors.rlim_cur < now.rlim_max ? descriptors.rlim_cur : now.rlim_max;
    setrlimit(RLIMIT_NOFILE, &now);
}

/* The error of the first flush that failed: later ones may succeed, without what was lost. */
static int output_error;

void flush_output(void)
{
    if (fflush(stdout) != 0 && output_error == 0)
        output_error = errno;
}

bool finish_output(void)
{
    flush_output();
    if (!ferror(stdout))
        return true;
    /* printf(3) writes, too, when its buffer is full. */
    complain("standard output: %s", output_error != 0 ? strerror(output_error)
                                                      : "not all could be written");
    return false;
}
