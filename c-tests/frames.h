/*
 * frames.h: packets of a channel made by hand, for peers that do what no honest one does.
 *
 * Written from the format, not with the library. A peer is a process of its own; it reports with
 * must(), because cmocka's assertions belong to the process that runs the tests.
 */
#ifndef FRAMES_H
#define FRAMES_H

#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

/** The kinds of frame. */
enum { HELLO = 1, WELCOME = 2, GRANTS = 3, OFFERS = 4, VERDICTS = 5, DRAIN = 6, REFUSAL = 7 };

/** Why a backend turns a broker away, and what else a refusal says with that. */
enum { NOT_ALLOWED = 1, CHANNELS = 2, CHANNELS_OF_USER = 3, OTHER_VERSION = 4, DRAINING = 5 };
enum { NAMELESS = 1, LISTED = 2 };

/** Where the fields of a refusal are, and how long the frame is. */
enum { AT_CAUSE = 16, AT_FLAGS = 17, AT_VERSIONS = 18, AT_USER = 20, AT_OWN = 24, AT_LIMIT = 28,
       REFUSAL_LEN = 32 };

/** Where the fields of a header are, and how long it is. */
enum { AT_LENGTH = 0, AT_VERSION = 4, AT_KIND = 5, AT_ENTRIES = 6, AT_DESCRIPTORS = 8,
       AT_RESERVED = 10, HEADER_LEN = 16 };

/** The fixed part of an offer, and where the lengths are in it. */
enum { AT_PREREAD_LEN = 40, AT_METADATA_LEN = 44, OFFER_LEN = 56 };

/** A claim word's states, in its two low bits; the generation is above. */
enum { OFFERED = 1, ADOPTED = 2, REVOKED = 3 };
#define CLAIM_WORD(generation, state) ((uint64_t)(generation) << 2 | (state))

/** How long a peer waits for what must happen. */
enum { PATIENCE_S = 60 };

/** How a peer ends that was slower than a deadline of the other side: the test allows it more. */
enum { TOO_SLOW = 77 };

enum { TOKEN_LEN = 16, MOST_BYTES = 128 * 1024, MOST_FDS = 253 };

struct frame {
    unsigned char bytes[MOST_BYTES + 4096];
    size_t len;
    int fds[MOST_FDS];
    size_t fds_len;
};

/** One entry of a frame of offers. */
struct entry {
    uint32_t slot;
    uint64_t generation;
    const unsigned char *token;
    uint64_t cookie;
    int fd;
    const char *correlation;
    uint32_t preread_len;
};

/** Begins a frame without entries. */
void frame_begin(struct frame *frame, int kind);

/** Little-endian numbers: behind what is there, counted in the frame's length; or in its place. */
void frame_add(struct frame *frame, uint64_t value, size_t width);
void frame_set(struct frame *frame, size_t at, uint64_t value, size_t width);
uint64_t frame_get(const struct frame *frame, size_t at, size_t width);

/** Attaches a descriptor, and says so in the header. */
void frame_attach(struct frame *frame, int fd);

void frame_hello(struct frame *frame, uint32_t slots, int table);
void frame_welcome(struct frame *frame, uint32_t slots, uint32_t max_bytes);
void frame_grant(struct frame *frame, uint32_t slot, const unsigned char *token);
void frame_offer(struct frame *frame, const struct entry *entry);
void frame_refusal(struct frame *frame, int cause, int flags, uint32_t user, uint32_t own,
                   uint32_t limit);
/** `next` may be NULL: no further token. */
void frame_verdict(struct frame *frame, uint32_t slot, int reason, uint64_t generation,
                   const unsigned char *next);

/** sendmsg(2) of a frame in one packet: 0, or -1 with errno. */
int frame_send(int socket, const struct frame *frame);
/** recvmsg(2) of one packet: 0, or -1 at the channel's end. */
int frame_receive(int socket, struct frame *frame);

/** A socket's SO_COOKIE. */
uint64_t cookie_of(int socket);

/** A connected, or a listening, Unix socket of sequenced packets; -1 with errno. What it waits for
    fails after PATIENCE_S. */
int packets_connect(const char *path);
int packets_listen(const char *path);

/** In a peer: what must be so, or it exits with 1 and says where. */
#define must(condition) must_be((condition) != 0, #condition, __FILE__, __LINE__)
void must_be(int is, const char *condition, const char *file, int line);

/** In a peer: the other side closes the channel. */
#define must_end(socket) must(channel_ends(socket))
int channel_ends(int socket);

/** Forks; the child has standard input, output and error only, and `keep` if that is not -1. */
pid_t fork_peer(int keep);

/** Whether a file of this name is mapped into this process. */
int is_mapped(const char *name);

#endif
