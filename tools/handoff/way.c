/* The first steps of `handoff check`: the directories on the way to a socket, and its file. */
#define _GNU_SOURCE
#include "way.h"

#include "command.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <unistd.h>

/* "drwxr-x--- app (1001) www-data (33)" */
static void describe_file(const struct stat *file, char *text, size_t size)
{
    static const char bits[] = "rwxrwxrwx";
    char mode[10], user[USER_LEN], group[USER_LEN];
    for (int i = 0; i < 9; i++)
        mode[i] = file->st_mode & (0400u >> i) ? bits[i] : '-';
    mode[9] = '\0';
    describe_user(file->st_uid, user, sizeof user);
    describe_group(file->st_gid, group, sizeof group);
    snprintf(text, size, "mode %s, user %s, group %s", mode, user, group);
}

static const char *type_of(mode_t mode)
{
    return S_ISREG(mode)    ? "a regular file"
           : S_ISDIR(mode)  ? "a directory"
           : S_ISFIFO(mode) ? "a FIFO"
           : S_ISCHR(mode)  ? "a character device"
           : S_ISBLK(mode)  ? "a block device"
                            : "no socket";
}

/* Fails the step. */
static bool is_a_loop(struct report *report, const char *step, const char *path)
{
    step_failed(report, step, NO_PATH, HANDOFF_ERR_BACKEND_UNAVAILABLE, ELOOP,
                "the symbolic links from %s on have no end: %s", path, strerror(ELOOP));
    advise(report, "Correct the symbolic link that leads back to itself: `namei %s' shows them "
                   "all.", path);
    return false;
}

/* One directory on the way: it must exist, and this user must be able to go through it. */
static bool check_directory(struct report *report, const char *path)
{
    struct stat file;
    char about[300], user[USER_LEN];
    if (stat(path, &file) == -1) {
        int error = errno;
        if (error == ELOOP)
            return is_a_loop(report, "directory", path);
        step_failed(report, "directory", error == ENOENT || error == ENOTDIR ? NO_PATH : FAILED,
                    HANDOFF_ERR_BACKEND_UNAVAILABLE, error, "there is no directory %s: %s", path,
                    strerror(error));
        advise(report, "Correct the path, or start what makes this directory.");
        return false;
    }
    if (!S_ISDIR(file.st_mode)) {
        step_failed(report, "directory", NO_PATH, HANDOFF_ERR_BACKEND_UNAVAILABLE, ENOTDIR,
                    "%s is %s, not a directory", path,
                    S_ISSOCK(file.st_mode) ? "a socket" : type_of(file.st_mode));
        advise(report, "Correct the path.");
        return false;
    }
    describe_file(&file, about, sizeof about);
    if (faccessat(AT_FDCWD, path, X_OK, AT_EACCESS) == -1) {
        int error = errno;
        describe_user(geteuid(), user, sizeof user);
        step_failed(report, "directory", NO_SEARCH, HANDOFF_ERR_PERMISSION_DENIED, error,
                    "user %s may not search the directory %s (%s)", user, path, about);
        advise(report, "Give this user the x permission for the directory: with chmod(1), chgrp(1) "
                       "or, under systemd, RuntimeDirectoryMode=.");
        return false;
    }
    step_ok(report, "directory", "%s: %s", path, about);
    return true;
}

bool check_directories(struct report *report, const char *path)
{
    char parent[PATH_LEN];
    if (*path != '/' && !check_directory(report, "."))
        return false;
    for (const char *slash = strchr(path, '/'); slash != NULL; slash = strchr(slash + 1, '/')) {
        if (slash[1] == '/' || slash[1] == '\0')
            continue;
        size_t len = slash == path ? 1 : (size_t)(slash - path);
        memcpy(parent, path, len);
        parent[len] = '\0';
        if (!check_directory(report, parent))
            return false;
    }
    return true;
}

bool check_file(struct report *report, const char *path)
{
    struct stat file;
    char about[300], user[USER_LEN];
    if (stat(path, &file) == -1) {
        int error = errno;
        if (error == ELOOP)
            return is_a_loop(report, "socket", path);
        step_failed(report, "socket", error == ENOENT ? NO_PATH : FAILED,
                    HANDOFF_ERR_BACKEND_UNAVAILABLE, error, "there is no socket %s: %s", path,
                    strerror(error));
        advise(report, "Start the backend, or correct the path.");
        return false;
    }
    if (!S_ISSOCK(file.st_mode)) {
        step_failed(report, "socket", NO_SOCKET, HANDOFF_ERR_NOT_A_SOCKET, 0,
                    "%s is %s, not a socket", path, type_of(file.st_mode));
        advise(report, "Name the socket that the backend listens on; if it is to listen here, "
                       "remove the file first.");
        return false;
    }
    describe_file(&file, about, sizeof about);
    if (faccessat(AT_FDCWD, path, W_OK, AT_EACCESS) == -1) {
        int error = errno;
        describe_user(geteuid(), user, sizeof user);
        step_failed(report, "socket", NO_ACCESS, HANDOFF_ERR_PERMISSION_DENIED, error,
                    "user %s may not connect to %s (%s)", user, path, about);
        advise(report, "Give the socket a mode and a group that let this user write to it: `mode' "
                       "in handoff_backend_options, --mode and --group of `handoff exec', or "
                       "SocketMode= and SocketGroup= of systemd.");
        return false;
    }
    step_ok(report, "socket", "%s: %s", path, about);
    return true;
}
