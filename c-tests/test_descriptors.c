/*
 * Descriptors that a broker sends and that are no connections, or that make close(2) wait: they hold
 * up nobody, as far as that is in a program's power; docs/security.md says what is not.
 */
#define _GNU_SOURCE
#include "channel.h"
#include "frames.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <poll.h>
#include <string.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>

static struct channel channel;

/* ---- what is no socket ----------------------------------------------------------------------- */

/* Descriptors that were polled although they are no sockets, and how often sockets were. */
static unsigned others_polled, sockets_polled;

/* The library's poll(2), too: a program's own function goes before the C library's. */
int poll(struct pollfd *fds, nfds_t count, int timeout)
{
    static int (*next)(struct pollfd *, nfds_t, int);
    for (nfds_t i = 0; i < count; i++) {
        struct stat status;
        if (fds[i].fd >= 0 && fstat(fds[i].fd, &status) == 0) {
            sockets_polled += S_ISSOCK(status.st_mode);
            others_polled += !S_ISSOCK(status.st_mode);
        }
    }
    if (next == NULL)
        next = (int (*)(struct pollfd *, nfds_t, int))(uintptr_t)dlsym(RTLD_NEXT, "poll");
    return next(fds, count, timeout);
}

/* The other end of a connection, if it is to be closed here before anything is sent, and whether it
 * always was. */
static int closed_first = -1;
static bool was_closed;

ssize_t sendmsg(int socket, const struct msghdr *message, int flags)
{
    static ssize_t (*next)(int, const struct msghdr *, int);
    char byte;
    if (closed_first != -1)
        was_closed = was_closed && recv(closed_first, &byte, 1, MSG_DONTWAIT) == 0;
    if (next == NULL)
        next = (ssize_t (*)(int, const struct msghdr *, int))(uintptr_t)dlsym(RTLD_NEXT, "sendmsg");
    return next(socket, message, flags);
}

enum { SLOTS = 32 };

/* A broker that offers what it likes. */
struct broker {
    int socket;
    uint64_t *words;
    unsigned char tokens[SLOTS][TOKEN_LEN];
    uint32_t next;
};

static struct frame frame;

static struct broker connect_raw_broker(void)
{
    struct broker broker = {.socket = packets_connect(channel.path)};
    int table = memfd_create("table", MFD_CLOEXEC | MFD_ALLOW_SEALING);
    assert_int_equal(ftruncate(table, SLOTS * 8), 0);
    assert_int_equal(fcntl(table, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW), 0);
    broker.words = mmap(NULL, SLOTS * 8, PROT_READ | PROT_WRITE, MAP_SHARED, table, 0);
    assert_true(broker.words != MAP_FAILED);
    frame_hello(&frame, SLOTS, table);
    assert_int_equal(frame_send(broker.socket, &frame), 0);
    close(table);
    assert_ok(handoff_backend_dispatch(channel.backend));
    assert_int_equal(frame_receive(broker.socket, &frame), 0);
    assert_int_equal(frame_get(&frame, AT_KIND, 1), WELCOME);
    assert_int_equal(frame_receive(broker.socket, &frame), 0);
    assert_int_equal(frame_get(&frame, AT_ENTRIES, 2), SLOTS);
    for (size_t i = 0; i < SLOTS; i++)
        memcpy(broker.tokens[i], frame.bytes + HEADER_LEN + i * 24 + 8, TOKEN_LEN);
    return broker;
}

/* Adds an offer to the frame. */
static void add_offer(struct broker *broker, int fd, uint64_t cookie)
{
    uint32_t slot = broker->next++;
    struct entry entry = {.slot = slot, .generation = 1, .token = broker->tokens[slot],
                          .cookie = cookie, .fd = fd};
    broker->words[slot] = CLAIM_WORD(1, OFFERED);
    frame_offer(&frame, &entry);
}

static void end_raw_broker(struct broker *broker)
{
    close(broker->socket);
    munmap(broker->words, SLOTS * 8);
}

static void listen_only(const handoff_backend_options *options)
{
    make_directory(channel.directory);
    snprintf(channel.path, sizeof channel.path, "%s/socket", channel.directory);
    assert_ok(handoff_backend_listen(channel.path, options, &channel.backend));
    channel.broker = NULL;
}

static void what_is_no_socket_is_never_polled(void **state)
{
    (void)state;
    int ends[2], tcp[2];
    listen_only(NULL);
    struct broker broker = connect_raw_broker();
    make_tcp_pair(tcp);
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    int others[] = {ends[0], ends[1], open("/dev/null", O_RDWR | O_CLOEXEC),
                    eventfd(0, EFD_CLOEXEC), memfd_create("file", MFD_CLOEXEC),
                    open("/tmp", O_RDONLY | O_CLOEXEC)};
    enum { OTHERS = sizeof others / sizeof *others };
    frame_begin(&frame, OFFERS);
    for (size_t i = 0; i < OTHERS; i++)
        add_offer(&broker, others[i], cookie_of(tcp[0]));
    /* Among them one that is a connection. */
    add_offer(&broker, tcp[0], cookie_of(tcp[0]));
    assert_int_equal(frame_send(broker.socket, &frame), 0);
    others_polled = sockets_polled = 0;
    assert_ok(handoff_backend_dispatch(channel.backend));
    assert_int_equal(others_polled, 0);
    assert_int_equal(sockets_polled, 1);
    handoff_backend_statistics found = backend_statistics(channel.backend);
    assert_int_equal(found.rejected, OTHERS);
    assert_int_equal(found.held, 1);
    for (size_t i = 0; i < OTHERS; i++)
        close(others[i]);
    end_raw_broker(&broker);
    close_channel(&channel);
    close(tcp[0]);
    close(tcp[1]);
}

/* ---- connections that linger ----------------------------------------------------------------- */

enum { LINGER_S = 40 };

/* The other end of the connection, which reads nothing. */
static int peer;

/* A TCP connection that lingers, with more unsent data than its peer takes. */
static int lingering(void)
{
    static char data[65536];
    int ends[2];
    struct linger linger = {.l_onoff = 1, .l_linger = LINGER_S};
    make_tcp_pair(ends);
    peer = ends[0];
    assert_int_equal(fcntl(ends[1], F_SETFL, O_NONBLOCK), 0);
    while (write(ends[1], data, sizeof data) > 0)
        ;
    assert_int_equal(setsockopt(ends[1], SOL_SOCKET, SO_LINGER, &linger, sizeof linger), 0);
    return ends[1];
}

static struct linger linger_of(int fd)
{
    struct linger linger;
    socklen_t len = sizeof linger;
    assert_int_equal(getsockopt(fd, SOL_SOCKET, SO_LINGER, &linger, &len), 0);
    return linger;
}

/* Offers a lingering connection and closes this process's copy, which nobody should do. */
static uint64_t offer_the_last_copy(void)
{
    int fd = lingering();
    uint64_t id = offer_fd(&channel, fd);
    close(fd);
    return id;
}

static void reject_it(void)
{
    offer_the_last_copy();
    handoff_arrival arrival = arrival_of(&channel);
    assert_ok(handoff_backend_reject(channel.backend, arrival.id, HANDOFF_REASON_REJECTED));
}

static void take_it_back(void)
{
    assert_ok(handoff_broker_take_back(channel.broker, offer_the_last_copy()));
    assert_no_arrival(&channel);
    assert_int_equal(backend_statistics(channel.backend).taken_back, 1);
}

static void take_it_back_late(void)
{
    uint64_t id = offer_the_last_copy();
    handoff_arrival arrival = arrival_of(&channel);
    int fd = -1;
    assert_ok(handoff_broker_take_back(channel.broker, id));
    assert_status(handoff_backend_adopt(channel.backend, arrival.id, &fd),
                  HANDOFF_ERR_TAKEN_BACK);
}

static void refuse_it(void)
{
    offer_the_last_copy();
    assert_falls_back(&channel, HANDOFF_REASON_KIND);
}

static void hold_it_to_the_end(void)
{
    offer_the_last_copy();
    arrival_of(&channel);
}

/* Two packets, of which the backend looks at the second when it comes to it. */
static void leave_it_in_its_packet(void)
{
    int tcp[2];
    make_tcp_pair(tcp);
    offer_fd(&channel, tcp[1]);
    offer_the_last_copy();
    arrival_of(&channel);
    close(tcp[0]);
    close(tcp[1]);
}

static void assert_not_held_up(void (*step)(void), const handoff_backend_options *options)
{
    open_channel(&channel, NULL, options);
    uint64_t start = now_ns();
    step();
    handoff_backend_free(channel.backend);
    assert_true(ms_since(start) < LINGER_S * 1000 / 2);
    handoff_broker_free(channel.broker);
    remove_directory(channel.directory);
    close(peer);
}

static void connection_that_lingers_is_closed_at_once_unless_it_is_adopted(void **state)
{
    (void)state;
    handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
    assert_not_held_up(reject_it, NULL);
    assert_not_held_up(take_it_back, NULL);
    assert_not_held_up(take_it_back_late, NULL);
    assert_not_held_up(hold_it_to_the_end, NULL);
    assert_not_held_up(leave_it_in_its_packet, NULL);
    options.kinds = HANDOFF_KIND_SEQPACKET;
    assert_not_held_up(refuse_it, &options);
}

/* A broker that sets the options of its connection when it has the verdict keeps what it has set. */
static void connection_is_closed_before_the_broker_hears_that_it_was_rejected(void **state)
{
    (void)state;
    int ends[2];
    open_channel(&channel, NULL, NULL);
    make_pair(SOCK_STREAM, ends);
    offer_fd(&channel, ends[0]);
    handoff_arrival arrival = arrival_of(&channel);
    close(ends[0]);
    closed_first = ends[1];
    was_closed = true;
    assert_ok(handoff_backend_reject(channel.backend, arrival.id, HANDOFF_REASON_REJECTED));
    closed_first = -1;
    assert_true(was_closed);
    assert_falls_back(&channel, HANDOFF_REASON_REJECTED);
    close_channel(&channel);
    close(ends[1]);
}

static void packet_that_breaks_its_channel_does_not_make_the_backend_linger(void **state)
{
    (void)state;
    listen_only(NULL);
    struct broker broker = connect_raw_broker();
    int fd = lingering();
    frame_begin(&frame, OFFERS);
    add_offer(&broker, fd, 0);
    frame_attach(&frame, fd);
    assert_int_equal(frame_send(broker.socket, &frame), 0);
    close(fd);
    uint64_t start = now_ns();
    assert_ok(handoff_backend_dispatch(channel.backend));
    assert_int_equal(backend_statistics(channel.backend).broken, 1);
    assert_true(ms_since(start) < LINGER_S * 1000 / 2);
    end_raw_broker(&broker);
    close_channel(&channel);
    close(peer);
}

static void adopted_connection_lingers_as_the_broker_had_it(void **state)
{
    (void)state;
    open_channel(&channel, NULL, NULL);
    int fd = lingering(), adopted = -1;
    offer_fd(&channel, fd);
    handoff_arrival arrival = arrival_of(&channel);
    assert_ok(handoff_backend_adopt(channel.backend, arrival.id, &adopted));
    assert_int_equal(linger_of(adopted).l_onoff, 1);
    assert_int_equal(linger_of(adopted).l_linger, LINGER_S);
    close_channel(&channel);
    /* So that this test does not. */
    struct linger off = {0};
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_LINGER, &off, sizeof off), 0);
    close(adopted);
    close(fd);
    close(peer);
}

/* It holds one, or that is in a packet that it has not looked at. */
static void free_a_backend_in_a_child(int in_its_packet)
{
    open_channel(&channel, NULL, NULL);
    int fd = lingering(), adopted = -1;
    if (in_its_packet)
        offer_fd(&channel, peer);
    offer_fd(&channel, fd);
    handoff_arrival arrival = arrival_of(&channel);
    pid_t child = start_child();
    if (child == 0) {
        handoff_backend_free(channel.backend);
        _exit(0);
    }
    assert_child_succeeds(child);
    assert_int_equal(linger_of(fd).l_onoff, 1);
    if (in_its_packet)
        assert_true(next_arrival(channel.backend, &arrival));
    assert_ok(handoff_backend_adopt(channel.backend, arrival.id, &adopted));
    struct linger off = {0};
    assert_int_equal(setsockopt(fd, SOL_SOCKET, SO_LINGER, &off, sizeof off), 0);
    close(adopted);
    close_channel(&channel);
    close(fd);
    close(peer);
}

static void child_that_frees_a_backend_leaves_what_it_holds_as_it_is(void **state)
{
    (void)state;
    free_a_backend_in_a_child(0);
    free_a_backend_in_a_child(1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(what_is_no_socket_is_never_polled),
        TEST(connection_that_lingers_is_closed_at_once_unless_it_is_adopted),
        TEST(connection_is_closed_before_the_broker_hears_that_it_was_rejected),
        TEST(packet_that_breaks_its_channel_does_not_make_the_backend_linger),
        TEST(adopted_connection_lingers_as_the_broker_had_it),
        TEST(child_that_frees_a_backend_leaves_what_it_holds_as_it_is),
    };
    return RUN_TESTS(tests);
}
