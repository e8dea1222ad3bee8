/* HTTP/1 requests as they come in pieces: bytes to values, no I/O. */
#ifndef REQUEST_H
#define REQUEST_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

enum body_state {
    BODY_PLAIN, /* `left` bytes are to come */
    CHUNK_SIZE,
    CHUNK_EXTENSION,
    CHUNK_DATA,
    CHUNK_END,
    TRAILER,
    BODY_DONE,
    BODY_BAD
};

/* A body: nothing of it is kept but its length and checksum. */
struct body {
    enum body_state state;
    bool line_empty; /* of a trailer */
    uint64_t left;
    uint64_t length;
    uint32_t crc; /* as zlib's crc32() */
};

enum { ID_LEN = 63, VALUE_LEN = 1023 };

struct request {
    char what[16];            /* of a target /what/id/argument?query */
    char id[ID_LEN + 1];
    uint64_t argument;
    bool keep_alive;
    bool expects_continue;
    char accel[VALUE_LEN + 1];      /* headers that a proxy adds: where X-Accel-Redirect leads, */
    char accel_data[VALUE_LEN + 1]; /* and what goes with it */
    struct body body;
};

/* How long the head at the beginning is, with its empty line; 0 if that has not come. */
size_t head_length(const char *bytes, size_t len);

/* Reads a head. False if it makes no sense. */
bool parse_head(const char *head, size_t len, struct request *request);

/* Takes the part of the bytes that belongs to the body, and says how many these are. */
size_t take_body(struct body *body, const char *bytes, size_t len);

#endif
