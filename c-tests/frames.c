#define _GNU_SOURCE
#include "frames.h"
#include "libc.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/time.h>
#include <sys/un.h>
#include <unistd.h>

void frame_begin(struct frame *frame, int kind)
{
    frame->len = HEADER_LEN;
    frame->fds_len = 0;
    memset(frame->bytes, 0, HEADER_LEN);
    frame_set(frame, AT_LENGTH, HEADER_LEN, 4);
    frame_set(frame, AT_VERSION, 1, 1);
    frame_set(frame, AT_KIND, (uint64_t)kind, 1);
}

void frame_set(struct frame *frame, size_t at, uint64_t value, size_t width)
{
    for (size_t i = 0; i < width; i++)
        frame->bytes[at + i] = (unsigned char)(value >> (8 * i));
}

uint64_t frame_get(const struct frame *frame, size_t at, size_t width)
{
    uint64_t value = 0;
    for (size_t i = 0; i < width; i++)
        value |= (uint64_t)frame->bytes[at + i] << (8 * i);
    return value;
}

void frame_add(struct frame *frame, uint64_t value, size_t width)
{
    must(frame->len + width <= sizeof frame->bytes);
    for (size_t i = 0; i < width; i++)
        frame->bytes[frame->len + i] = i < 8 ? (unsigned char)(value >> (8 * i)) : 0;
    frame->len += width;
    frame_set(frame, AT_LENGTH, frame->len, 4);
}

static void add_bytes(struct frame *frame, const void *bytes, size_t len)
{
    for (size_t i = 0; i < len; i++)
        frame_add(frame, ((const unsigned char *)bytes)[i], 1);
}

static void count(struct frame *frame, size_t at)
{
    frame_set(frame, at, frame_get(frame, at, 2) + 1, 2);
}

void frame_attach(struct frame *frame, int fd)
{
    must(frame->fds_len < MOST_FDS);
    frame->fds[frame->fds_len++] = fd;
    count(frame, AT_DESCRIPTORS);
}

void frame_hello(struct frame *frame, uint32_t slots, int table)
{
    frame_begin(frame, HELLO);
    frame_add(frame, slots, 4);
    frame_add(frame, 0, 12);
    frame_attach(frame, table);
}

void frame_welcome(struct frame *frame, uint32_t slots, uint32_t max_bytes)
{
    frame_begin(frame, WELCOME);
    frame_add(frame, slots, 4);
    frame_add(frame, max_bytes, 4);
    frame_add(frame, 0, 8);
}

void frame_grant(struct frame *frame, uint32_t slot, const unsigned char *token)
{
    count(frame, AT_ENTRIES);
    frame_add(frame, slot, 4);
    frame_add(frame, 0, 4);
    add_bytes(frame, token, TOKEN_LEN);
}

void frame_offer(struct frame *frame, const struct entry *entry)
{
    const char *correlation = entry->correlation ? entry->correlation : "";
    count(frame, AT_ENTRIES);
    frame_attach(frame, entry->fd);
    frame_add(frame, entry->slot, 4);
    frame_add(frame, 0, 4);
    frame_add(frame, entry->generation, 8);
    add_bytes(frame, entry->token, TOKEN_LEN);
    frame_add(frame, entry->cookie, 8);
    frame_add(frame, entry->preread_len, 4);
    frame_add(frame, 0, 4);
    frame_add(frame, 0, 1);
    frame_add(frame, strlen(correlation), 1);
    frame_add(frame, 0, 6);
    add_bytes(frame, correlation, strlen(correlation));
    frame_add(frame, 0, entry->preread_len);
}

void frame_refusal(struct frame *frame, int cause, int flags, uint32_t user, uint32_t own,
                   uint32_t limit)
{
    frame_begin(frame, REFUSAL);
    frame_add(frame, (uint64_t)cause, 1);
    frame_add(frame, (uint64_t)flags, 1);
    frame_add(frame, 1, 1);
    frame_add(frame, 1, 1);
    frame_add(frame, user, 4);
    frame_add(frame, own, 4);
    frame_add(frame, limit, 4);
}

void frame_verdict(struct frame *frame, uint32_t slot, int reason, uint64_t generation,
                   const unsigned char *next)
{
    static const unsigned char none[TOKEN_LEN];
    count(frame, AT_ENTRIES);
    frame_add(frame, slot, 4);
    frame_add(frame, (uint64_t)reason, 1);
    frame_add(frame, next != NULL, 1);
    frame_add(frame, 0, 2);
    frame_add(frame, generation, 8);
    add_bytes(frame, next ? next : none, TOKEN_LEN);
}

int frame_send(int socket, const struct frame *frame)
{
    union {
        char bytes[CMSG_SPACE(MOST_FDS * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec iov = {.iov_base = (void *)(uintptr_t)frame->bytes, .iov_len = frame->len};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1};
    if (frame->fds_len > 0) {
        memset(&control, 0, sizeof control);
        message.msg_control = &control;
        message.msg_controllen = CMSG_SPACE(frame->fds_len * sizeof(int));
        struct cmsghdr *header = CMSG_FIRSTHDR(&message);
        header->cmsg_level = SOL_SOCKET;
        header->cmsg_type = SCM_RIGHTS;
        header->cmsg_len = CMSG_LEN(frame->fds_len * sizeof(int));
        memcpy(CMSG_DATA(header), frame->fds, frame->fds_len * sizeof(int));
    }
    return send_any(socket, &message) == (ssize_t)frame->len ? 0 : -1;
}

int frame_receive(int socket, struct frame *frame)
{
    union {
        char bytes[CMSG_SPACE(MOST_FDS * sizeof(int))];
        struct cmsghdr align;
    } control;
    struct iovec iov = {.iov_base = frame->bytes, .iov_len = sizeof frame->bytes};
    struct msghdr message = {.msg_iov = &iov, .msg_iovlen = 1, .msg_control = &control,
                             .msg_controllen = sizeof control};
    ssize_t len = recvmsg(socket, &message, MSG_CMSG_CLOEXEC);
    if (len < HEADER_LEN)
        return -1;
    frame->len = (size_t)len;
    frame->fds_len = 0;
    struct cmsghdr *header = CMSG_FIRSTHDR(&message);
    if (header != NULL && header->cmsg_type == SCM_RIGHTS) {
        frame->fds_len = (header->cmsg_len - CMSG_LEN(0)) / sizeof(int);
        memcpy(frame->fds, CMSG_DATA(header), frame->fds_len * sizeof(int));
    }
    return 0;
}

uint64_t cookie_of(int socket)
{
    uint64_t value = 0;
    socklen_t len = sizeof value;
    must(getsockopt(socket, SOL_SOCKET, SO_COOKIE, &value, &len) == 0);
    return value;
}

static int packets_socket(const char *path, struct sockaddr_un *address)
{
    struct timeval limit = {.tv_sec = PATIENCE_S};
    memset(address, 0, sizeof *address);
    address->sun_family = AF_UNIX;
    must(strlen(path) < sizeof address->sun_path);
    strcpy(address->sun_path, path);
    int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    must(fd != -1);
    must(setsockopt(fd, SOL_SOCKET, SO_RCVTIMEO, &limit, sizeof limit) == 0);
    must(setsockopt(fd, SOL_SOCKET, SO_SNDTIMEO, &limit, sizeof limit) == 0);
    return fd;
}

int packets_connect(const char *path)
{
    struct sockaddr_un address;
    int fd = packets_socket(path, &address);
    if (connect(fd, (struct sockaddr *)&address, sizeof address) == 0)
        return fd;
    close(fd);
    return -1;
}

int packets_listen(const char *path)
{
    struct sockaddr_un address;
    int fd = packets_socket(path, &address);
    if (bind(fd, (struct sockaddr *)&address, sizeof address) == 0 && listen(fd, 8) == 0)
        return fd;
    close(fd);
    return -1;
}

void must_be(int is, const char *condition, const char *file, int line)
{
    if (is)
        return;
    fprintf(stderr, "%s:%d: in the peer: not so: %s (errno %d)\n", file, line, condition, errno);
    _exit(1);
}

int channel_ends(int socket)
{
    static char packet[sizeof(((struct frame *)0)->bytes)];
    for (;;) {
        ssize_t len = recv(socket, packet, sizeof packet, 0);
        if (len <= 0)
            return len == 0 || errno == ECONNRESET;
    }
}

pid_t fork_peer(int keep)
{
    fflush(NULL);
    pid_t child = fork();
    if (child != 0)
        return child;
    if (keep != -1) {
        must(dup2(keep, 3) == 3);
        must(close_all_from(4) == 0);
    } else {
        must(close_all_from(3) == 0);
    }
    return 0;
}

int is_mapped(const char *name)
{
    char line[512];
    int found = 0;
    FILE *maps = fopen("/proc/self/maps", "re");
    must(maps != NULL);
    while (fgets(line, sizeof line, maps) != NULL)
        found |= strstr(line, name) != NULL;
    fclose(maps);
    return found;
}
