/* The way to a socket in the file system. */
#ifndef HANDOFF_WAY_H
#define HANDOFF_WAY_H

#include <stdbool.h>
#include <sys/un.h>

#include "report.h"

enum { USER_LEN = 80, PATH_LEN = sizeof ((struct sockaddr_un *)0)->sun_path };

/* All directories on the way to `path`: each is there, and this user may search it. */
bool check_directories(struct report *report, const char *path);

/* What is at the path: a socket that this user may connect to. */
bool check_file(struct report *report, const char *path);

#endif
