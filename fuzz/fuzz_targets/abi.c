/*
 * abi.c: the calls of the C ABI, in any order, with arguments at and over their edges.
 *
 * The input says which call comes next and what is passed: handles that live, that were freed and
 * made again, or NULL; pointers that are NULL or misaligned; structs of every size that a header
 * could have, and of sizes that none has; lengths, numbers, names and descriptors that make no
 * sense. What the library could not tell from a good argument is not passed: a freed handle, a
 * pointer to less than its length says.
 *
 * What must hold, beside what the sanitizers see: a status is one that the header names, and never
 * HANDOFF_ERR_INTERNAL; a bad argument is refused as such; after an error there is a message, and
 * what was to be filled is as it was; after the last call no descriptor is left. Every argument is
 * a block of its own, of the size that it says.
 */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <handoff.h>
#include <limits.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size);
int LLVMFuzzerInitialize(int *argc, char ***argv);

#define must(condition) ((condition) ? (void)0 : fail(#condition, __LINE__))

static const char *call = "none";
static handoff_status status;

static _Noreturn void fail(const char *condition, int line)
{
    fprintf(stderr, "abi.c:%d: after %s, which returned %s (%d): %s is false: %s (errno %d)\n", line,
            call, handoff_status_name(status), status, condition, handoff_last_error(), errno);
    abort();
}

/* ---- the input ------------------------------------------------------------------------------- */

static const uint8_t *input;
static size_t input_left;

static unsigned u8(void)
{
    if (input_left == 0)
        return 0;
    input_left--;
    return *input++;
}

static unsigned below(unsigned end)
{
    return u8() % end;
}

static bool rarely(void)
{
    return u8() >= 232;
}

static uint64_t u64(void)
{
    uint64_t number = 0;
    for (int i = 0; i < 8; i++)
        number = number << 8 | u8();
    return number;
}

/** A number at an edge of what numbers can be, or a small one. */
static uint64_t edge(void)
{
    switch (below(16)) {
    case 0: return UINT64_MAX;
    case 1: return (uint64_t)INT64_MAX;
    case 2: return (uint64_t)INT64_MAX + 1;
    case 3: return UINT32_MAX;
    case 4: return 1ULL << 32;
    case 5: return INT32_MAX;
    case 6: return 65536;
    case 7: return u64();
    case 8: return 4097;
    case 9: return 1;
    default: return below(16);
    }
}

/* ---- arguments ------------------------------------------------------------------------------- */

/** What was allocated for the call that is made next. */
static struct {
    unsigned char *block, *before;
    size_t len;
} blocks[64];
static size_t blocks_len;
/** An argument of the call that is made next is one that it must refuse; unless that is in a part of
    a struct that may not be looked at. */
static bool bad, unsure;

/** Of exactly this length, so that a sanitizer sees what goes beyond it. */
static void *block(size_t len)
{
    unsigned char *bytes = malloc(len > 0 ? len : 1), *before = malloc(len > 0 ? len : 1);
    must(bytes != NULL && before != NULL && blocks_len < sizeof blocks / sizeof *blocks);
    memset(bytes, 0xa5, len);
    blocks[blocks_len].block = bytes;
    blocks[blocks_len].before = before;
    blocks[blocks_len++].len = len;
    return bytes;
}

static void *copy(const void *from, size_t len)
{
    void *to = block(len);
    if (len > 0)
        memcpy(to, from, len);
    return to;
}

/** A pointer to what is there; seldom NULL or, if there is an alignment, misaligned. */
static void *pointer(void *good, bool may_be_null, bool aligned)
{
    if (!rarely())
        return good;
    if (aligned && below(2) == 0) {
        bad = true;
        /* To where something is: refused for its alignment alone. */
        return (char *)block(512) + 1 + below(3);
    }
    bad |= !may_be_null;
    return NULL;
}

#define OUT(type) ((type *)pointer(block(sizeof(type)), false, sizeof(type) > 1 && _Alignof(type) > 1))
#define OPTIONAL_OUT(type) \
    ((type *)pointer(block(sizeof(type)), true, sizeof(type) > 1 && _Alignof(type) > 1))

/** A struct that begins with its size: as this header has it, as an older or a newer one might, or
    with a size that cannot be. */
static void *sized(const void *initial, size_t size, bool may_be_null, bool input_struct)
{
    size_t said = size, room = size;
    bool unknown = false;
    if (u8() >= 200) {
        switch (below(9)) {
        case 0: said = room = sizeof(size_t); break;
        case 1: said = room = size - 8 * (1 + below((unsigned)(size / 8) - 1)); break;
        case 2: said = room = size + 8; break;
        case 3: said = room = size + 8 * below(32); break;
        case 4: said = room = 4096; break;
        case 5: said = 0; break;
        case 6: said = sizeof(size_t) - 1; break;
        case 7: said = 4097 + below(8); break;
        default: said = (size_t)edge(); room = said <= 4096 && said > room ? said : room; break;
        }
        /* A part of a field is no header's. */
        if (said < size && said >= sizeof(size_t))
            said = said / 8 * 8;
        unknown = input_struct && room > size && below(4) == 0;
    }
    bool is_size = said >= sizeof(size_t) && said <= 4096;
    if (room < said && is_size)
        room = said;
    if (room < sizeof(size_t))
        room = sizeof(size_t);
    if (is_size)
        room = said;
    unsigned char *bytes = block(room);
    if (input_struct)
        memset(bytes, 0, room);
    memcpy(bytes, initial, size < room ? size : room);
    memcpy(bytes, &said, sizeof said);
    if (unknown && room > size) {
        bytes[size + below((unsigned)(room - size))] = 1;
        bad = true;
    }
    /* What was bad before is in this struct, or in what it points to. */
    unsure |= bad && said < size;
    void *chosen = pointer(bytes, may_be_null, true);
    unsure |= bad && chosen == NULL;
    if (chosen == bytes && !is_size)
        bad = true;
    return chosen;
}

#define IN(type, value) ((const type *)sized(&(value), sizeof(type), false, true))
#define IN_OR_NULL(type, value) ((const type *)sized(&(value), sizeof(type), true, true))
#define FILLED(type, init) \
    ((type *)sized(&(const type)init, sizeof(type), false, false))

/** Bytes and their number; an empty array may be NULL, and a number can be too large for memory. */
static const void *bytes_of(size_t *len)
{
    static const size_t lens[] = {0, 1, 2, 15, 16, 17, 255, 256, 4096, 65536, 131000, 131001};
    if (rarely()) {
        *len = below(2) == 0 ? 0 : (size_t)-1 - below(16);
        bad |= *len > 0;
        return below(2) == 0 ? NULL : block(1);
    }
    *len = lens[u8() < 240 ? below(8) : below(12)];
    if (*len > 0 && rarely()) {
        bad = true;
        return NULL;
    }
    return block(*len);
}

static const char *text(size_t len)
{
    char *string = block(len + 1);
    memset(string, 'x', len);
    string[len] = '\0';
    return string;
}

/* ---- the world ------------------------------------------------------------------------------- */

static char directory[] = "/tmp/handoff-fuzz-abi-XXXXXX";

enum { HANDLES = 2, IDS = 8, TOKENS = 4 };
enum { STREAM, PACKETS = 2, OTHER_STREAM = 4, OTHER_PACKETS = 6, LISTENER = 8, FILE_FD, POOL };

static int pool[POOL];
static handoff_broker *brokers[HANDLES];
static handoff_backend *backends[HANDLES];
static handoff_raw_store *stores[HANDLES];
static handoff_raw_pending *pendings[HANDLES];
static handoff_raw_failures *counters[HANDLES];
static handoff_raw_listener *listeners[HANDLES];
static uint64_t offers[IDS], arrivals[IDS];
static handoff_raw_token tokens[TOKENS];
/** Of the handle that the next call is made with. */
static unsigned which;

/** One that is there: a call with NULL is made seldom enough. */
#define LIVE(array)                                              \
    do {                                                         \
        which = below(HANDLES);                                  \
        if (array[which] == NULL)                                \
            which = !which;                                      \
        if (array[which] == NULL && !rarely())                   \
            return;                                              \
    } while (0)

static void *handle(void *live)
{
    if (live == NULL) {
        bad = true;
        return NULL;
    }
    if (rarely()) {
        bad = true;
        return below(2) == 0 ? NULL : (char *)block(512) + 1 + below(3);
    }
    return live;
}

static int any_fd(void)
{
    static const int numbers[] = {-1, INT_MIN, INT_MAX, 1000000, 999};
    unsigned choice = u8();
    if (choice >= 240)
        return numbers[below(5)];
    return pool[choice % POOL];
}

/** One of the sockets that are connected to each other. */
static int any_socket(void)
{
    return u8() < 232 ? pool[below(LISTENER)] : any_fd();
}

static const char *any_path(void)
{
    char path[128];
    switch (u8() % 24) {
    case 0: bad = true; return NULL;
    case 1: return text(0);
    case 2: return text(107);
    case 3: return text(108);
    case 4: return text(5000);
    case 5: return copy("@", 2);
    case 6: return copy("/", 2);
    case 7: return copy(directory, sizeof directory);
    case 8: snprintf(path, sizeof path, "%s/file", directory); break;
    case 9: snprintf(path, sizeof path, "%s/none/socket", directory); break;
    case 10: snprintf(path, sizeof path, "@handoff-fuzz-abi-%d", (int)getpid()); break;
    case 11: snprintf(path, sizeof path, "%s/\xff\xfe", directory); break;
    default: snprintf(path, sizeof path, "%s/%u", directory, below(2));
    }
    return copy(path, strlen(path) + 1);
}

/** A name of an offer, or NULL. */
static const char *any_name(void)
{
    switch (below(12)) {
    case 0: return text(255);
    case 1: return text(256);
    case 2: return text(1);
    case 3: return copy("\xff\x01", 3);
    default: return NULL;
    }
}

static uint64_t any_id(const uint64_t *known)
{
    return u8() < 224 ? known[below(IDS)] : edge();
}

static const handoff_raw_token *any_token(void)
{
    return pointer(copy(&tokens[below(TOKENS)], sizeof *tokens), false, false);
}

/** How long to wait: without limit only if the call is refused for something else. */
static int any_wait(void)
{
    if (bad && below(2) == 0)
        return -1 - (int)below(2) * INT_MAX;
    return (int)below(8) / 7;
}

static uint64_t short_timeout(void)
{
    return bad ? edge() : 1;
}

static const handoff_peer_policy *any_policy(void)
{
    handoff_peer_policy policy = HANDOFF_PEER_POLICY_INIT;
    uint32_t numbers[] = {geteuid(), 65534, UINT32_MAX, 0};
    if (below(4) == 0)
        return NULL;
    policy.users_len = below(5);
    policy.users = copy(numbers, policy.users_len * sizeof *numbers);
    policy.groups_len = below(5);
    policy.groups = copy(numbers, policy.groups_len * sizeof *numbers);
    if (rarely()) {
        policy.users = below(2) == 0 ? NULL : (const uint32_t *)((const char *)block(64) + 1);
        policy.users_len = below(2) == 0 ? 1 : SIZE_MAX / 2;
        const handoff_peer_policy *refused = copy(&policy, sizeof policy);
        bad = true;
        return refused;
    }
    return IN_OR_NULL(handoff_peer_policy, policy);
}

/* ---- a call ---------------------------------------------------------------------------------- */

static bool is_error_of_argument(void)
{
    return status == HANDOFF_ERR_INVALID_ARGUMENT || status == HANDOFF_ERR_UNSUPPORTED ||
           status == HANDOFF_ERR_TOO_LARGE;
}

/** The last thing before the call: what may be filled is remembered. */
static void before(const char *name)
{
    call = name;
    for (size_t i = 0; i < blocks_len; i++)
        memcpy(blocks[i].before, blocks[i].block, blocks[i].len);
    errno = 0;
}

static void free_blocks(void)
{
    for (size_t i = 0; i < blocks_len; i++) {
        free(blocks[i].block);
        free(blocks[i].before);
    }
    blocks_len = 0;
    bad = unsure = false;
}

/** The first thing after it. Returns whether it succeeded. */
static bool after(handoff_status result)
{
    status = result;
    must(strcmp(handoff_status_name(status), "HANDOFF_ERR_UNKNOWN") != 0);
    must(status != HANDOFF_ERR_INTERNAL && status != HANDOFF_ERR_WRONG_PROCESS);
    must(!bad || unsure || is_error_of_argument() || status == HANDOFF_ERR_CLOSED);
    if (status < HANDOFF_OK) {
        must(handoff_last_error()[0] != '\0' && strlen(handoff_last_error()) < 512);
        must(errno >= 0);
    }
    if (status != HANDOFF_OK)
        for (size_t i = 0; i < blocks_len; i++)
            must(memcmp(blocks[i].before, blocks[i].block, blocks[i].len) == 0);
    return status == HANDOFF_OK;
}

#define CALL(name, ...) (before(#name), after(name(__VA_ARGS__)))
#define CALL_VOID(name, ...) (before(#name), name(__VA_ARGS__))

/** A new descriptor is close-on-exec, and nobody else's. */
static void close_new(int fd)
{
    must(fcntl(fd, F_GETFD) == FD_CLOEXEC);
    must(close(fd) == 0);
}

/* ---- statuses and what else needs no handle --------------------------------------------------- */

static void op_names(void)
{
    int32_t number = (int32_t)edge();
    must(handoff_status_name(number)[0] != '\0' && handoff_status_message(number)[0] != '\0');
    must(handoff_reason_name((handoff_reason)number)[0] != '\0');
    must(handoff_reason_name(handoff_status_reason(number))[0] != '\0');
    bool safe = handoff_status_is_fallback_safe(number);
    must(safe == (handoff_status_reason(number) != HANDOFF_REASON_NONE));
    (void)handoff_status_may_have_reached_backend(number);
    must(handoff_version()[0] != '\0' && handoff_last_error() != NULL);
    must(handoff_last_errno() >= 0 && handoff_last_status() <= HANDOFF_OK);
    before("handoff_supported");
    must(after(handoff_supported()));
}

static void op_layout(void)
{
    static const char *const names[] = {"HANDOFF_ERR_FULL", "handoff_offer", "handoff_offer.fd",
                                        "handoff_offer.", "handoff_offer.fd.fd", "."};
    unsigned choice = below(8);
    const char *name = choice < 6 ? copy(names[choice], strlen(names[choice]) + 1) : any_path();
    unsigned asked = below(3);
    if (asked == 0) {
        int64_t *value = OUT(int64_t);
        CALL(handoff_constant, name, value);
        return;
    }
    size_t *size = OUT(size_t);
    size_t *offset = asked == 1 ? NULL : OUT(size_t);
    if (asked == 1)
        CALL(handoff_struct_size, name, size);
    else
        CALL(handoff_field, name, offset, size);
}

#define INIT_OP(type, init, wrapper)                                       \
    static void wrapper(void)                                              \
    {                                                                      \
        static const size_t sizes[] = {0, 7, 8, 16, sizeof(type) - 8,      \
                                       sizeof(type), sizeof(type) + 8,     \
                                       4096, 4097, SIZE_MAX};              \
        size_t size = sizes[below(10)];                                    \
        bool is_size = size >= 8 && size <= 4096;                          \
        bad |= !is_size;                                                   \
        type *out = pointer(block(is_size ? size : 8), false, true);       \
        if (CALL(init, out, size))                                         \
            must(out->size == size);                                       \
    }

INIT_OP(handoff_broker_options, handoff_broker_options_init, op_broker_options_init)
INIT_OP(handoff_broker_backend, handoff_broker_backend_init, op_broker_backend_init)
INIT_OP(handoff_backend_options, handoff_backend_options_init, op_backend_options_init)
INIT_OP(handoff_offer, handoff_offer_init, op_offer_init)
INIT_OP(handoff_peer_policy, handoff_peer_policy_init, op_policy_init)
INIT_OP(handoff_raw_store_options, handoff_raw_store_options_init, op_store_options_init)
INIT_OP(handoff_raw_pending_options, handoff_raw_pending_options_init, op_pending_options_init)
INIT_OP(handoff_raw_failures_options, handoff_raw_failures_options_init, op_failures_options_init)
INIT_OP(handoff_raw_listener_options, handoff_raw_listener_options_init, op_listener_options_init)
INIT_OP(handoff_raw_inputs, handoff_raw_inputs_init, op_inputs_init)

/* ---- the broker ------------------------------------------------------------------------------ */

/** A socket's, or that of the directory where the backends listen. */
static const char *any_backend_path(void)
{
    if (below(4) > 0)
        return any_path();
    char path[128];
    snprintf(path, sizeof path, "%s/", directory);
    return copy(path, strlen(path) + 1);
}

static void op_broker_new(void)
{
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    options.max_in_flight = (size_t)edge();
    options.timeout_ms = edge();
    options.attempt_timeout_ms = edge();
    options.failover_bytes = (size_t)edge();
    options.queue_bytes = (size_t)edge();
    options.max_failures = (size_t)edge();
    options.failure_period_ms = edge();
    options.reconnect_min_ms = below(4) == 0 ? edge() : 1;
    options.reconnect_max_ms = edge();
    const handoff_broker_options *given = IN_OR_NULL(handoff_broker_options, options);
    bool before_path = bad;
    const char *path = any_backend_path();
    /* No path is no backend. */
    if (path == NULL)
        bad = before_path;
    handoff_broker **out = OUT(handoff_broker *);
    unsigned place = below(HANDLES);
    if (CALL(handoff_broker_new, path, given, out)) {
        handoff_broker_free(brokers[place]);
        brokers[place] = *out;
    }
}

static void op_broker_fd(void)
{
    LIVE(brokers);
    handoff_broker *broker = handle(brokers[which]);
    before("handoff_broker_fd");
    int fd = handoff_broker_fd(broker);
    must(fd != -1 ? !bad && fcntl(fd, F_GETFD) == FD_CLOEXEC : handoff_last_error()[0] != '\0');
}

/** What is offered; true if it may be longer than the library takes. */
static handoff_offer any_offer(void)
{
    handoff_offer offer = HANDOFF_OFFER_INIT;
    struct iovec parts[4];
    offer.fd = u8() < 200 ? pool[OTHER_STREAM] : any_fd();
    offer.flags = u8() < 240 ? below(2) : (uint32_t)edge();
    if (below(3) == 0) {
        offer.preread_iov_len = below(5);
        for (size_t i = 0; i < offer.preread_iov_len; i++)
            parts[i].iov_base = (void *)(uintptr_t)bytes_of(&parts[i].iov_len);
        offer.preread_iov = copy(parts, offer.preread_iov_len * sizeof *parts);
        if (rarely()) {
            offer.preread_iov = NULL;
            bad |= offer.preread_iov_len > 0;
        }
    } else {
        offer.preread = bytes_of(&offer.preread_len);
    }
    if (below(4) == 0)
        offer.metadata = bytes_of(&offer.metadata_len);
    offer.service = any_name();
    offer.correlation = any_name();
    offer.user_data = (void *)(uintptr_t)u8();
    return offer;
}

/* A bad offer is refused; but without a channel, or with one that is full, for that. */
static bool may_offer_fail_otherwise(void)
{
    switch (status) {
    case HANDOFF_ERR_BACKEND_UNAVAILABLE:
    case HANDOFF_ERR_FULL:
    case HANDOFF_ERR_RATE_LIMITED:
    case HANDOFF_ERR_PERMISSION_DENIED:
    case HANDOFF_ERR_PEER_NOT_ALLOWED:
    case HANDOFF_ERR_WOULD_BLOCK:
        return true;
    default:
        return false;
    }
}

static void op_broker_offer(void)
{
    LIVE(brokers);
    handoff_offer offer = any_offer();
    offer.timeout_ms = below(3) == 0 ? edge() : 1;
    handoff_broker *broker = handle(brokers[which]);
    const handoff_offer *given = IN(handoff_offer, offer);
    uint64_t *id = OPTIONAL_OUT(uint64_t);
    before("handoff_broker_offer");
    status = handoff_broker_offer(broker, given, id);
    bad &= !may_offer_fail_otherwise();
    if (after(status) && id != NULL)
        offers[below(IDS)] = *id;
}

static void op_broker_offer_and_wait(void)
{
    LIVE(brokers);
    handoff_offer offer = any_offer();
    /* Without a limit only if it is woken. */
    bool forever = below(4) == 0;
    offer.timeout_ms = forever ? HANDOFF_NO_TIMEOUT : 1;
    handoff_broker *broker = handle(brokers[which]);
    handoff_offer *given = copy(&offer, sizeof offer);
    handoff_verdict *verdict = FILLED(handoff_verdict, HANDOFF_VERDICT_INIT);
    if (brokers[which] != NULL && forever)
        must(handoff_broker_wake(brokers[which]) == HANDOFF_OK);
    before("handoff_broker_offer_and_wait");
    status = handoff_broker_offer_and_wait(broker, given, verdict);
    bad &= !may_offer_fail_otherwise() && status != HANDOFF_WOKEN;
    after(status);
}

static void op_broker_dispatch(void)
{
    LIVE(brokers);
    handoff_broker *broker = handle(brokers[which]);
    CALL(handoff_broker_dispatch, broker);
}

static void op_broker_flush(void)
{
    LIVE(brokers);
    handoff_broker *broker = handle(brokers[which]);
    CALL(handoff_broker_flush, broker);
}

static void op_broker_next(void)
{
    LIVE(brokers);
    handoff_broker *broker = handle(brokers[which]);
    handoff_verdict *verdict = FILLED(handoff_verdict, HANDOFF_VERDICT_INIT);
    if (CALL(handoff_broker_next, broker, verdict) && verdict->size == sizeof *verdict)
        must(verdict->outcome == HANDOFF_ADOPTED || verdict->outcome == HANDOFF_FALLBACK);
}

static void op_broker_take_back(void)
{
    LIVE(brokers);
    uint64_t id = any_id(offers);
    handoff_broker *broker = handle(brokers[which]);
    CALL(handoff_broker_take_back, broker, id);
}

static void op_broker_wake(void)
{
    LIVE(brokers);
    /* It sets no message, for it is made in signal handlers. */
    if (brokers[which] != NULL)
        must(handoff_broker_wake(brokers[which]) == HANDOFF_OK);
    must(handoff_broker_wake(NULL) == HANDOFF_ERR_INVALID_ARGUMENT);
}

static void op_broker_statistics(void)
{
    LIVE(brokers);
    handoff_broker *broker = handle(brokers[which]);
    handoff_broker_statistics *out =
        FILLED(handoff_broker_statistics, HANDOFF_BROKER_STATISTICS_INIT);
    CALL(handoff_broker_get_statistics, broker, out);
    must(handoff_broker_last_error(broker) != NULL);
}

static void op_broker_add(void)
{
    LIVE(brokers);
    handoff_broker_backend backend = HANDOFF_BROKER_BACKEND_INIT;
    backend.path = any_backend_path();
    backend.weight = (uint32_t)edge();
    backend.flags = u8() < 240 ? below(8) / 6 + below(8) / 6 * 2 : (uint32_t)edge();
    bad |= backend.flags > 3;
    backend.max_in_flight = (size_t)edge();
    backend.max_failures = (size_t)edge();
    backend.failure_period_ms = edge();
    handoff_broker *broker = handle(brokers[which]);
    const handoff_broker_backend *given = IN(handoff_broker_backend, backend);
    CALL(handoff_broker_add, broker, given);
}

static void op_broker_remove(void)
{
    LIVE(brokers);
    handoff_broker *broker = handle(brokers[which]);
    const char *path = any_backend_path();
    before("handoff_broker_remove");
    status = handoff_broker_remove(broker, path);
    /* What cannot be a path is no backend's. */
    bad &= status != HANDOFF_NOTHING || broker != brokers[which] || path == NULL;
    after(status);
}

static void op_broker_room(void)
{
    LIVE(brokers);
    handoff_broker *broker = handle(brokers[which]);
    before("handoff_broker_room");
    must(handoff_broker_room(broker) == 0 || !bad);
}

static void op_broker_get_backend_state(void)
{
    LIVE(brokers);
    size_t index = below(8) == 0 ? (size_t)edge() : below(4);
    handoff_broker *broker = handle(brokers[which]);
    handoff_broker_backend_state *out =
        FILLED(handoff_broker_backend_state, HANDOFF_BROKER_BACKEND_STATE_INIT);
    if (!CALL(handoff_broker_get_backend_state, broker, index, out) || out->size != sizeof *out)
        return;
    must(out->path[0] != '\0' && out->weight >= 1 && out->weight <= 65535);
    must(out->state >= HANDOFF_STATE_CONNECTING && out->state <= HANDOFF_STATE_DOWN);
    must((out->status == HANDOFF_OK) == (out->message[0] == '\0') && out->status <= HANDOFF_OK);
    must(out->status != HANDOFF_ERR_INTERNAL && out->system_errno >= 0 && out->reserved == 0);
    must(out->in_flight <= 4096 && out->room <= 4096 && out->adopted <= out->offered);
    must(out->room == 0 || out->state == HANDOFF_STATE_READY ||
         out->state == HANDOFF_STATE_RESTING);
}

static void op_broker_close(void)
{
    LIVE(brokers);
    handoff_broker *broker = handle(brokers[which]);
    if (rarely())
        CALL(handoff_broker_close, broker);
}

static void op_broker_free(void)
{
    which = below(HANDLES);
    CALL_VOID(handoff_broker_free, brokers[which]);
    brokers[which] = NULL;
}

/* ---- the backend ----------------------------------------------------------------------------- */

static const handoff_backend_options *any_backend_options(void)
{
    handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
    options.mode = below(4) == 0 ? (uint32_t)edge() : 0600;
    options.backlog = (int32_t)edge();
    options.policy = any_policy();
    options.max_channels = (size_t)edge();
    options.max_in_flight = (size_t)edge();
    options.max_offer_bytes = (size_t)edge();
    options.max_held_bytes = (size_t)edge();
    options.kinds = below(2) == 0 ? edge() : HANDOFF_KIND_ANY;
    return IN_OR_NULL(handoff_backend_options, options);
}

static void keep_backend(handoff_backend *backend)
{
    unsigned place = below(HANDLES);
    handoff_backend_free(backends[place]);
    backends[place] = backend;
}

static void op_backend_listen(void)
{
    const char *path = any_path();
    const handoff_backend_options *options = any_backend_options();
    handoff_backend **out = OUT(handoff_backend *);
    if (CALL(handoff_backend_listen, path, options, out))
        keep_backend(*out);
}

static void op_backend_listen_on(void)
{
    int fd = u8() < 200 ? pool[LISTENER] : any_fd();
    const handoff_backend_options *options = any_backend_options();
    handoff_backend **out = OUT(handoff_backend *);
    if (CALL(handoff_backend_listen_on, fd, options, out))
        keep_backend(*out);
}

static void op_backend_fd(void)
{
    LIVE(backends);
    handoff_backend *backend = handle(backends[which]);
    before("handoff_backend_fd");
    int fd = handoff_backend_fd(backend);
    must(fd != -1 ? !bad && fcntl(fd, F_GETFD) == FD_CLOEXEC : handoff_last_error()[0] != '\0');
}

static void op_backend_dispatch(void)
{
    LIVE(backends);
    handoff_backend *backend = handle(backends[which]);
    CALL(handoff_backend_dispatch, backend);
}

/** The whole of it is there, and ends where it says. */
static void look_at(const handoff_arrival *arrival)
{
    unsigned char sum = 0;
    for (size_t i = 0; i < arrival->preread_len; i++)
        sum |= ((const unsigned char *)arrival->preread)[i];
    for (size_t i = 0; i < arrival->metadata_len; i++)
        sum |= ((const unsigned char *)arrival->metadata)[i];
    /* Every byte that is offered is like this. */
    must(sum == 0 || sum == 0xa5);
    must(strlen(arrival->service) <= 255 && strlen(arrival->correlation) <= 255);
}

static void op_backend_next(void)
{
    LIVE(backends);
    handoff_backend *backend = handle(backends[which]);
    handoff_arrival *arrival = FILLED(handoff_arrival, HANDOFF_ARRIVAL_INIT);
    if (CALL(handoff_backend_next, backend, arrival)) {
        if (arrival->size >= 16)
            arrivals[below(IDS)] = arrival->id;
        if (arrival->size >= sizeof *arrival) {
            must(arrival->fd == -1);
            look_at(arrival);
        }
    }
}

static void op_backend_accept(void)
{
    LIVE(backends);
    handoff_backend *backend = handle(backends[which]);
    /* With room for its descriptor, or that would be lost: the caller's mistake. */
    handoff_arrival initial = HANDOFF_ARRIVAL_INIT;
    handoff_arrival *arrival = pointer(copy(&initial, sizeof initial), false, true);
    int wait = any_wait();
    bool woken = below(4) == 0 && backends[which] != NULL && !bad;
    if (woken) {
        must(handoff_backend_wake(backends[which]) == HANDOFF_OK);
        wait = -1;
    }
    if (CALL(handoff_backend_accept, backend, wait, arrival)) {
        look_at(arrival);
        close_new(arrival->fd);
    }
}

static void op_backend_wake(void)
{
    LIVE(backends);
    if (backends[which] != NULL)
        must(handoff_backend_wake(backends[which]) == HANDOFF_OK);
    must(handoff_backend_wake(NULL) == HANDOFF_ERR_INVALID_ARGUMENT);
}

static void op_backend_adopt(void)
{
    LIVE(backends);
    uint64_t id = any_id(arrivals);
    handoff_backend *backend = handle(backends[which]);
    int *fd = OUT(int);
    if (CALL(handoff_backend_adopt, backend, id, fd))
        close_new(*fd);
}

static void op_backend_reject(void)
{
    LIVE(backends);
    uint64_t id = any_id(arrivals);
    handoff_reason reason = below(4) == 0 ? (handoff_reason)edge() : HANDOFF_REASON_REJECTED;
    handoff_backend *backend = handle(backends[which]);
    CALL(handoff_backend_reject, backend, id, reason);
}

static void op_backend_statistics(void)
{
    LIVE(backends);
    handoff_backend *backend = handle(backends[which]);
    handoff_backend_statistics *out =
        FILLED(handoff_backend_statistics, HANDOFF_BACKEND_STATISTICS_INIT);
    CALL(handoff_backend_get_statistics, backend, out);
    must(handoff_backend_last_error(backend) != NULL);
}

static void op_backend_drain(void)
{
    LIVE(backends);
    handoff_backend *backend = handle(backends[which]);
    if (rarely())
        CALL(handoff_backend_drain, backend);
}

static void op_backend_free(void)
{
    which = below(HANDLES);
    CALL_VOID(handoff_backend_free, backends[which]);
    backends[which] = NULL;
}

/* ---- the raw layer: tokens ------------------------------------------------------------------- */

static void op_token(void)
{
    size_t len;
    handoff_raw_token *out = pointer(block(sizeof *out), false, false);
    if (below(2) == 0) {
        if (CALL(handoff_raw_token_generate, out))
            tokens[below(TOKENS)] = *out;
        return;
    }
    const void *bytes = bytes_of(&len);
    bad |= len != HANDOFF_RAW_TOKEN_LEN;
    if (CALL(handoff_raw_token_from_bytes, bytes, len, out))
        must(memcmp(out, bytes, len) == 0);
}

static void op_token_equal(void)
{
    const handoff_raw_token *a = any_token(), *b = any_token();
    before("handoff_raw_token_equal");
    bool equal = handoff_raw_token_equal(a, b);
    must(equal == (a != NULL && b != NULL && memcmp(a, b, sizeof *a) == 0));
}

static void op_store_new(void)
{
    handoff_raw_store_options options = HANDOFF_RAW_STORE_OPTIONS_INIT;
    /* A million takes too long to be made often. */
    options.capacity = rarely() && rarely() ? (size_t)edge() : below(64);
    options.lifetime_ms = edge();
    options.collision_attempts = (size_t)edge();
    const handoff_raw_store_options *given = IN_OR_NULL(handoff_raw_store_options, options);
    handoff_raw_store **out = OUT(handoff_raw_store *);
    unsigned place = below(HANDLES);
    if (CALL(handoff_raw_store_new, given, out)) {
        handoff_raw_store_free(stores[place]);
        stores[place] = *out;
    }
}

static void op_store(void)
{
    LIVE(stores);
    unsigned operation = below(8);
    handoff_raw_store *store = handle(stores[which]);
    const handoff_raw_token *token = operation < 4 ? any_token() : NULL;
    const handoff_raw_token *other = operation == 1 ? any_token() : NULL;
    handoff_raw_token *issued = operation == 4 ? pointer(block(sizeof *issued), false, false) : NULL;
    size_t *removed = operation == 5 ? OPTIONAL_OUT(size_t) : NULL;
    switch (operation) {
    case 0: CALL(handoff_raw_store_insert, store, token); break;
    case 1: CALL(handoff_raw_store_consume, store, token, other); break;
    case 2: CALL(handoff_raw_store_redeem, store, token); break;
    case 3: CALL(handoff_raw_store_revoke, store, token); break;
    case 4:
        if (CALL(handoff_raw_store_issue, store, issued))
            tokens[below(TOKENS)] = *issued;
        break;
    case 5: CALL(handoff_raw_store_prune, store, removed); break;
    case 6:
        before("handoff_raw_store_length");
        must(handoff_raw_store_length(store) <= (bad ? 0 : 1048576));
        break;
    default:
        if (rarely()) {
            CALL_VOID(handoff_raw_store_free, stores[which]);
            stores[which] = NULL;
        }
    }
}

/* ---- the raw layer: messages ----------------------------------------------------------------- */

static void op_connect(void)
{
    const char *path = any_path();
    int *out = OUT(int);
    if (below(2) == 0) {
        if (CALL(handoff_raw_connect, path, out))
            close_new(*out);
        return;
    }
    int fd = any_fd();
    const handoff_raw_token *token = any_token();
    if (CALL(handoff_raw_send_path, path, fd, token, out))
        close_new(*out);
}

static void op_send(void)
{
    int socket = any_socket(), fd = any_fd();
    const handoff_raw_token *token = any_token();
    CALL(handoff_raw_send, socket, fd, token);
}

static void op_receive(void)
{
    int socket = any_socket();
    handoff_raw_token *token = pointer(block(sizeof *token), false, false);
    int *fd = OUT(int), wait = any_wait();
    if (CALL(handoff_raw_receive, socket, wait, token, fd))
        close_new(*fd);
}

static void op_receive_verified(void)
{
    LIVE(stores);
    int socket = any_socket();
    handoff_raw_store *store = handle(stores[which]);
    const handoff_raw_token *expected = below(2) == 0 ? NULL : copy(&tokens[below(TOKENS)], 16);
    handoff_raw_token *token = pointer(block(sizeof *token), true, false);
    int *fd = OUT(int), wait = any_wait();
    if (CALL(handoff_raw_receive_verified, socket, store, expected, wait, token, fd))
        close_new(*fd);
}

static void op_token_travels(void)
{
    int socket = any_socket();
    if (below(2) == 0) {
        const handoff_raw_token *token = any_token();
        CALL(handoff_raw_token_send, socket, token);
        return;
    }
    handoff_raw_token *out = pointer(block(sizeof *out), false, false);
    int wait = any_wait();
    CALL(handoff_raw_token_receive, socket, wait, out);
}

static void op_ack(void)
{
    int socket = any_socket();
    const handoff_raw_token *token = any_token();
    if (below(2) == 0) {
        CALL(handoff_raw_ack_accept, socket, token);
    } else {
        handoff_reason reason = below(2) == 0 ? (handoff_reason)edge() : HANDOFF_REASON_REJECTED;
        CALL(handoff_raw_ack_reject, socket, token, reason);
    }
}

static void op_ack_receive(void)
{
    int socket = any_socket();
    handoff_raw_ack *ack = FILLED(handoff_raw_ack, HANDOFF_RAW_ACK_INIT);
    if (below(2) == 0) {
        CALL(handoff_raw_ack_receive, socket, ack);
        return;
    }
    const handoff_raw_token *token = any_token();
    uint64_t timeout = short_timeout();
    CALL(handoff_raw_ack_wait, socket, token, timeout, ack);
}

static void op_take_back(void)
{
    int socket = any_socket();
    if (rarely())
        CALL(handoff_raw_take_back, socket);
}

static void op_attempt(void)
{
    int fd = any_fd();
    const handoff_raw_token *token = any_token();
    handoff_raw_verdict *verdict = FILLED(handoff_raw_verdict, HANDOFF_RAW_VERDICT_INIT);
    if (below(2) == 0) {
        int socket = any_socket();
        uint64_t timeout = short_timeout();
        CALL(handoff_raw_attempt, socket, fd, token, timeout, verdict);
    } else {
        const char *path = any_path();
        uint64_t timeout = short_timeout();
        CALL(handoff_raw_attempt_path, path, fd, token, timeout, verdict);
    }
}

/* ---- the raw layer: listeners and peers ------------------------------------------------------- */

static void op_listener_new(void)
{
    handoff_raw_listener_options options = HANDOFF_RAW_LISTENER_OPTIONS_INIT;
    options.mode = below(4) == 0 ? (uint32_t)edge() : 0600;
    options.backlog = (int32_t)edge();
    options.socket_type = below(4);
    options.reserved = rarely() ? (uint32_t)edge() : 0;
    const char *path = any_path();
    const handoff_raw_listener_options *given = IN_OR_NULL(handoff_raw_listener_options, options);
    handoff_raw_listener **out = OUT(handoff_raw_listener *);
    unsigned place = below(HANDLES);
    if (CALL(handoff_raw_listener_new, path, given, out)) {
        handoff_raw_listener_free(listeners[place]);
        listeners[place] = *out;
    }
}

static void op_listener(void)
{
    LIVE(listeners);
    const handoff_raw_listener *listener = handle(listeners[which]);
    if (below(3) == 0) {
        before("handoff_raw_listener_fd");
        must((handoff_raw_listener_fd(listener) == -1) == bad);
        return;
    }
    const handoff_peer_policy *policy = any_policy();
    int *out = OUT(int), wait = any_wait();
    if (CALL(handoff_raw_listener_accept, listener, policy, wait, out))
        close_new(*out);
}

static void op_listener_free(void)
{
    which = below(HANDLES);
    CALL_VOID(handoff_raw_listener_free, listeners[which]);
    listeners[which] = NULL;
}

static void op_peer(void)
{
    int socket = any_socket();
    if (below(2) == 0) {
        handoff_raw_peer *out = FILLED(handoff_raw_peer, HANDOFF_RAW_PEER_INIT);
        CALL(handoff_raw_peer_credentials, socket, out);
        return;
    }
    const handoff_peer_policy *policy = any_policy();
    handoff_raw_peer initial = HANDOFF_RAW_PEER_INIT;
    handoff_raw_peer *out = sized(&initial, sizeof initial, true, false);
    CALL(handoff_raw_peer_check, socket, policy, out);
}

/* ---- the raw layer: registries ---------------------------------------------------------------- */

static void op_pending_new(void)
{
    LIVE(stores);
    handoff_raw_pending_options options = HANDOFF_RAW_PENDING_OPTIONS_INIT;
    options.capacity = rarely() && rarely() ? (size_t)edge() : below(64);
    options.timeout_ms = edge();
    handoff_raw_store *store = handle(stores[which]);
    const handoff_raw_pending_options *given = IN_OR_NULL(handoff_raw_pending_options, options);
    handoff_raw_pending **out = OUT(handoff_raw_pending *);
    unsigned place = below(HANDLES);
    if (CALL(handoff_raw_pending_new, store, given, out)) {
        handoff_raw_pending_free(pendings[place]);
        pendings[place] = *out;
    }
}

static void op_pending(void)
{
    LIVE(pendings);
    unsigned operation = below(8);
    handoff_raw_pending *pending = handle(pendings[which]);
    const handoff_raw_token *token = operation < 3 ? any_token() : NULL;
    handoff_raw_token *out = operation == 3 ? pointer(block(sizeof *out), true, false) : NULL;
    int *wait = operation == 4 ? OUT(int) : NULL;
    void **data = operation >= 1 && operation < 4 ? OPTIONAL_OUT(void *) : NULL;
    switch (operation) {
    case 0: CALL(handoff_raw_pending_register, pending, token, &pool); break;
    case 1: CALL(handoff_raw_pending_acknowledge, pending, token, data); break;
    case 2: CALL(handoff_raw_pending_abandon, pending, token, data); break;
    case 3:
        if (CALL(handoff_raw_pending_expire, pending, out, data) && data != NULL)
            must(*data == &pool);
        break;
    case 4: CALL(handoff_raw_pending_next_wait, pending, wait); break;
    case 5:
        before("handoff_raw_pending_length");
        must(handoff_raw_pending_length(pending) <= (bad ? 0 : 1048576));
        break;
    default:
        if (rarely()) {
            CALL_VOID(handoff_raw_pending_free, pendings[which]);
            pendings[which] = NULL;
        }
    }
}

static void op_failures_new(void)
{
    handoff_raw_failures_options options = HANDOFF_RAW_FAILURES_OPTIONS_INIT;
    options.max_failures = (size_t)edge();
    options.period_ms = edge();
    options.max_backends = (size_t)edge();
    const handoff_raw_failures_options *given = IN_OR_NULL(handoff_raw_failures_options, options);
    handoff_raw_failures **out = OUT(handoff_raw_failures *);
    unsigned place = below(HANDLES);
    if (CALL(handoff_raw_failures_new, given, out)) {
        handoff_raw_failures_free(counters[place]);
        counters[place] = *out;
    }
}

static void op_failures(void)
{
    LIVE(counters);
    unsigned operation = below(6);
    handoff_raw_failures *counter = handle(counters[which]);
    const char *backend = any_path();
    switch (operation) {
    case 0: {
        handoff_raw_inputs inputs = HANDOFF_RAW_INPUTS_INIT;
        inputs.client_unsupported = below(3) == 0 ? (uint32_t)edge() : 0;
        inputs.foreign_backend = below(3) == 0 ? (uint32_t)edge() : 0;
        const handoff_raw_inputs *given = IN_OR_NULL(handoff_raw_inputs, inputs);
        handoff_raw_decision *out = FILLED(handoff_raw_decision, HANDOFF_RAW_DECISION_INIT);
        CALL(handoff_raw_failures_should_attempt, counter, backend, given, out);
        break;
    }
    case 1:
    case 2: {
        handoff_reason reason = below(2) == 0 ? (handoff_reason)edge() : HANDOFF_REASON_ACK_TIMEOUT;
        handoff_raw_decision initial = HANDOFF_RAW_DECISION_INIT;
        handoff_raw_decision *out = sized(&initial, sizeof initial, true, false);
        CALL(handoff_raw_failures_record_failure, counter, backend, reason, out);
        break;
    }
    case 3: CALL(handoff_raw_failures_record_success, counter, backend); break;
    case 4:
        before("handoff_raw_failures_failed_count");
        must(handoff_raw_failures_failed_count(counter, backend) <= (bad ? 0 : 4096));
        break;
    default:
        if (rarely()) {
            CALL_VOID(handoff_raw_failures_free, counters[which]);
            counters[which] = NULL;
        }
    }
}

/* ---- a run ----------------------------------------------------------------------------------- */

/** Both ends, as their loops would: or a channel would seldom come to be. */
static void op_turn(void)
{
    for (unsigned i = 0; i < 2 * HANDLES; i++) {
        if (backends[i % HANDLES] != NULL)
            CALL(handoff_backend_dispatch, backends[i % HANDLES]);
        if (brokers[i % HANDLES] != NULL)
            CALL(handoff_broker_dispatch, brokers[i % HANDLES]);
    }
}

static void (*const operations[])(void) = {
    op_turn, op_turn, op_turn, op_broker_offer, op_broker_offer, op_broker_offer, op_backend_next,
    op_backend_next, op_backend_adopt, op_backend_reject, op_broker_next, op_broker_take_back,
    op_backend_accept, op_broker_offer_and_wait, op_broker_new, op_backend_listen,
    op_backend_listen_on, op_broker_fd, op_backend_fd, op_broker_dispatch, op_backend_dispatch,
    op_broker_flush, op_broker_wake, op_backend_wake, op_broker_statistics, op_backend_statistics,
    op_broker_close, op_broker_free, op_backend_drain, op_backend_free, op_token, op_token_equal,
    op_store_new, op_store, op_store, op_connect, op_send, op_send, op_receive, op_receive_verified,
    op_token_travels, op_ack, op_ack_receive, op_take_back, op_attempt, op_listener_new,
    op_listener, op_listener_free, op_peer, op_pending_new, op_pending, op_pending,
    op_failures_new, op_failures, op_failures, op_names, op_broker_options_init,
    op_backend_options_init, op_offer_init, op_policy_init, op_store_options_init,
    op_pending_options_init, op_failures_options_init, op_listener_options_init, op_inputs_init,
    op_broker_backend_init, op_broker_add, op_broker_add, op_broker_remove, op_broker_room,
    op_broker_get_backend_state, op_broker_get_backend_state, op_layout,
};
enum { OPERATIONS = sizeof operations / sizeof *operations };

static unsigned open_descriptors(void)
{
    unsigned count = 0;
    DIR *list = opendir("/proc/self/fd");
    must(list != NULL);
    while (readdir(list) != NULL)
        count++;
    closedir(list);
    return count;
}

static void make_pool(void)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    for (int i = STREAM; i < LISTENER; i += 2) {
        int type = i % 4 == STREAM ? SOCK_STREAM : SOCK_SEQPACKET;
        must(socketpair(AF_UNIX, type | SOCK_CLOEXEC, 0, &pool[i]) == 0);
    }
    /* An abstract name that the system chooses. */
    pool[LISTENER] = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    must(bind(pool[LISTENER], (struct sockaddr *)&address, sizeof address.sun_family) == 0);
    must(listen(pool[LISTENER], 4) == 0);
    pool[FILE_FD] = open("/dev/null", O_RDWR | O_CLOEXEC);
    must(pool[FILE_FD] != -1);
}

static void free_all(void)
{
    for (int i = 0; i < HANDLES; i++) {
        handoff_broker_free(brokers[i]);
        handoff_backend_free(backends[i]);
        handoff_raw_pending_free(pendings[i]);
        handoff_raw_store_free(stores[i]);
        handoff_raw_failures_free(counters[i]);
        handoff_raw_listener_free(listeners[i]);
        brokers[i] = NULL;
        backends[i] = NULL;
        pendings[i] = NULL;
        stores[i] = NULL;
        counters[i] = NULL;
        listeners[i] = NULL;
    }
    for (int i = 0; i < POOL; i++)
        close(pool[i]);
}

int LLVMFuzzerTestOneInput(const uint8_t *data, size_t size)
{
    unsigned open_before = open_descriptors();
    input = data;
    input_left = size;
    memset(offers, 0, sizeof offers);
    memset(arrivals, 0, sizeof arrivals);
    memset(tokens, 7, sizeof tokens);
    make_pool();
    while (input_left > 0) {
        operations[below(OPERATIONS)]();
        free_blocks();
    }
    free_all();
    call = "all";
    must(open_descriptors() == open_before);
    return 0;
}

static void remove_directory(void)
{
    char name[64];
    snprintf(name, sizeof name, "%s/file", directory);
    unlink(name);
    rmdir(directory);
}

int LLVMFuzzerInitialize(int *argc, char ***argv)
{
    char name[64];
    (void)argc;
    (void)argv;
    must(mkdtemp(directory) != NULL);
    snprintf(name, sizeof name, "%s/file", directory);
    close(open(name, O_WRONLY | O_CREAT, 0600));
    atexit(remove_directory);
    return 0;
}
