#define _GNU_SOURCE
#include "request.h"

#include <ctype.h>
#include <stdlib.h>
#include <string.h>
#include <strings.h>

size_t head_length(const char *bytes, size_t len)
{
    const char *at = bytes, *end = bytes + len;
    while ((at = memchr(at, '\n', (size_t)(end - at))) != NULL) {
        at++;
        if (at < end && *at == '\n')
            return (size_t)(at + 1 - bytes);
        if (at + 1 < end && at[0] == '\r' && at[1] == '\n')
            return (size_t)(at + 2 - bytes);
    }
    return 0;
}

/* Copies as much as there is room for, with a NUL behind it. */
static void copy(char *to, size_t size, const char *from, size_t len)
{
    if (len >= size)
        len = size - 1;
    memcpy(to, from, len);
    to[len] = '\0';
}

/* The segment of a target that begins at `at`, behind its slash; moves `at` behind it. */
static void take_segment(const char **at, const char *end, char *to, size_t size)
{
    const char *start = *at;
    while (*at < end && **at != '/' && **at != '?' && **at != ' ')
        ++*at;
    copy(to, size, start, (size_t)(*at - start));
    if (*at < end && **at == '/')
        ++*at;
}

static bool parse_request_line(const char *line, const char *end, struct request *request)
{
    char argument[24];
    const char *target = memchr(line, ' ', (size_t)(end - line));
    const char *version = memrchr(line, ' ', (size_t)(end - line));
    if (target == NULL || target == version || target[1] != '/' || end - version != 9 ||
        memcmp(version, " HTTP/1.", 8) != 0)
        return false;
    request->keep_alive = version[8] != '0';
    target += 2;
    take_segment(&target, version, request->what, sizeof request->what);
    take_segment(&target, version, request->id, sizeof request->id);
    take_segment(&target, version, argument, sizeof argument);
    request->argument = strtoull(argument, NULL, 10);
    return true;
}

static void parse_header(const char *line, const char *end, struct request *request)
{
    char name[24], value[VALUE_LEN + 1];
    const char *colon = memchr(line, ':', (size_t)(end - line));
    if (colon == NULL)
        return;
    copy(name, sizeof name, line, (size_t)(colon - line));
    do
        colon++;
    while (colon < end && (*colon == ' ' || *colon == '\t'));
    while (end > colon && (end[-1] == ' ' || end[-1] == '\t'))
        end--;
    copy(value, sizeof value, colon, (size_t)(end - colon));

    if (strcasecmp(name, "Content-Length") == 0)
        request->body.left = strtoull(value, NULL, 10);
    else if (strcasecmp(name, "Transfer-Encoding") == 0 && strcasecmp(value, "chunked") == 0)
        request->body.state = CHUNK_SIZE;
    else if (strcasecmp(name, "Connection") == 0 && strcasecmp(value, "close") == 0)
        request->keep_alive = false;
    else if (strcasecmp(name, "Connection") == 0 && strcasecmp(value, "keep-alive") == 0)
        request->keep_alive = true;
    else if (strcasecmp(name, "Expect") == 0 && strcasecmp(value, "100-continue") == 0)
        request->expects_continue = true;
    else if (strcasecmp(name, "Accel") == 0)
        memcpy(request->accel, value, sizeof value);
    else if (strcasecmp(name, "Accel-Data") == 0)
        memcpy(request->accel_data, value, sizeof value);
}

bool parse_head(const char *head, size_t len, struct request *request)
{
    const char *line = head, *end = head + len;
    memset(request, 0, sizeof *request);
    for (;;) {
        const char *newline = memchr(line, '\n', (size_t)(end - line));
        const char *line_end = newline > line && newline[-1] == '\r' ? newline - 1 : newline;
        if (line_end == line)
            break;
        if (line != head)
            parse_header(line, line_end, request);
        else if (!parse_request_line(line, line_end, request))
            return false;
        line = newline + 1;
    }
    if (request->body.state == BODY_PLAIN && request->body.left == 0)
        request->body.state = BODY_DONE;
    return true;
}

static void digest(struct body *body, const char *bytes, size_t len)
{
    static uint32_t table[256];
    if (table[1] == 0)
        for (uint32_t i = 0; i < 256; i++) {
            table[i] = i;
            for (int bit = 0; bit < 8; bit++)
                table[i] = table[i] >> 1 ^ (table[i] & 1 ? 0xedb88320 : 0);
        }
    uint32_t crc = ~body->crc;
    for (size_t i = 0; i < len; i++)
        crc = crc >> 8 ^ table[(crc ^ (unsigned char)bytes[i]) & 255];
    body->crc = ~crc;
    body->length += len;
}

/* One byte of what is around the chunks. */
static void take_framing(struct body *body, char byte)
{
    if (body->state == CHUNK_SIZE && isxdigit((unsigned char)byte))
        body->left = body->left * 16 + (uint64_t)(isdigit((unsigned char)byte)
                                                      ? byte - '0'
                                                      : tolower((unsigned char)byte) - 'a' + 10);
    else if (byte == '\n' && (body->state == CHUNK_SIZE || body->state == CHUNK_EXTENSION)) {
        body->state = body->left > 0 ? CHUNK_DATA : TRAILER;
        body->line_empty = true;
    } else if (body->state == CHUNK_SIZE && (byte == ';' || byte == ' ' || byte == '\r'))
        body->state = CHUNK_EXTENSION;
    else if (body->state == CHUNK_END && byte == '\n')
        body->state = CHUNK_SIZE;
    else if (body->state == TRAILER && byte == '\n' && body->line_empty)
        body->state = BODY_DONE;
    else if (body->state == TRAILER && byte != '\r')
        body->line_empty = byte == '\n';
    else if (byte != '\r' && body->state != CHUNK_EXTENSION)
        body->state = BODY_BAD;
}

size_t take_body(struct body *body, const char *bytes, size_t len)
{
    size_t taken = 0;
    while (taken < len && body->state != BODY_DONE && body->state != BODY_BAD) {
        if (body->state != BODY_PLAIN && body->state != CHUNK_DATA) {
            take_framing(body, bytes[taken++]);
            continue;
        }
        size_t part = len - taken < body->left ? len - taken : (size_t)body->left;
        digest(body, bytes + taken, part);
        taken += part;
        body->left -= part;
        if (body->left == 0)
            body->state = body->state == BODY_PLAIN ? BODY_DONE : CHUNK_END;
    }
    return taken;
}
