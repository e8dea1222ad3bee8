/* The backend's calls: listening, accepting, limits, kinds of socket, draining. */
#define _GNU_SOURCE
#include "fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

static void open_again(const handoff_backend_options *options)
{
    close_channel(&channel);
    open_channel(&channel, NULL, options);
}

/* Every call with each of its pointers in turn NULL or misaligned. */
static void calls_refuse(void *bad)
{
    handoff_backend *none = NULL;
    handoff_arrival arrival, untouched;
    handoff_backend_statistics statistics = HANDOFF_BACKEND_STATISTICS_INIT;
    int fd = 42;
    memset(&arrival, 0x55, sizeof arrival);
    arrival.size = sizeof arrival;
    untouched = arrival;
    offer_fd(&channel, client[0]);
    assert_ok(handoff_backend_dispatch(channel.backend));
    errno = EDOM;
    assert_invalid(handoff_backend_listen(channel.path, NULL, bad));
    assert_int_equal(errno, 0);
    assert_last_error_has("invalid argument: backend is ");
    assert_invalid(handoff_backend_listen_on(client[0], NULL, bad));
    assert_int_equal(handoff_backend_fd(bad), -1);
    assert_invalid(handoff_backend_dispatch(bad));
    assert_invalid(handoff_backend_next(bad, &arrival));
    assert_invalid(handoff_backend_next(channel.backend, bad));
    assert_invalid(handoff_backend_accept(bad, 0, &arrival));
    assert_invalid(handoff_backend_accept(channel.backend, 0, bad));
    assert_invalid(handoff_backend_adopt(bad, 1, &fd));
    assert_invalid(handoff_backend_reject(bad, 1, HANDOFF_REASON_REJECTED));
    assert_invalid(handoff_backend_drain(bad));
    assert_invalid(handoff_backend_get_statistics(bad, &statistics));
    assert_invalid(handoff_backend_get_statistics(channel.backend, bad));
    handoff_backend_free(bad);
    assert_null(none);
    assert_memory_equal(&arrival, &untouched, sizeof arrival);
    uint64_t id = arrival_of(&channel).id;
    assert_invalid(handoff_backend_adopt(channel.backend, id, bad));
    adopt(&channel, id);
    assert_int_equal(fd, 42);
}

static void null_is_refused_and_takes_no_arrival(void **state)
{
    (void)state;
    handoff_backend *none = NULL;
    calls_refuse(NULL);
    assert_invalid(handoff_backend_listen(NULL, NULL, &none));
    assert_null(none);
}

static void misaligned_pointers_are_refused_and_take_no_arrival(void **state)
{
    (void)state;
    handoff_backend *none = NULL;
    handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
    calls_refuse(misaligned());
    assert_invalid(handoff_backend_listen(channel.path, misaligned(), &none));
    options.policy = misaligned();
    assert_invalid(handoff_backend_listen(channel.path, &options, &none));
    assert_null(none);
}

static void reserved_field_that_is_set_is_refused_and_named(void **state)
{
    (void)state;
    handoff_backend *none;
    handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
    options.reserved = 1;
    assert_status(handoff_backend_listen(channel.path, &options, &none), HANDOFF_ERR_UNSUPPORTED);
    assert_last_error_has("options.reserved");
}

static void unknown_kinds_are_refused_and_named(void **state)
{
    (void)state;
    handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
    handoff_backend *none = NULL;
    options.kinds = HANDOFF_KIND_ANY + 1;
    assert_invalid_because(handoff_backend_listen(channel.path, &options, &none), "options.kinds");
    assert_null(none);
}

static void options_out_of_range_are_clamped(void **state)
{
    (void)state;
    static uint8_t bytes[131001];
    handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
    handoff_offer offer = offer_of(client[0]);
    options.max_channels = options.max_in_flight = SIZE_MAX;
    options.max_offer_bytes = options.max_held_bytes = SIZE_MAX;
    open_again(&options);
    offer.preread = bytes;
    offer.preread_len = sizeof bytes;
    assert_status(handoff_broker_offer(channel.broker, &offer, NULL), HANDOFF_ERR_TOO_LARGE);
    offer.preread_len--;
    assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    assert_int_equal(arrival_of(&channel).preread_len, sizeof bytes - 1);
}

static void accept_waits_as_long_as_it_is_told(void **state)
{
    (void)state;
    handoff_arrival arrival;
    memset(&arrival, 0x55, sizeof arrival);
    arrival.size = sizeof arrival;
    handoff_arrival untouched = arrival;
    uint64_t start = now_ns();
    assert_status(handoff_backend_accept(channel.backend, 0, &arrival), HANDOFF_TIMED_OUT);
    assert_status(handoff_backend_accept(channel.backend, 20, &arrival), HANDOFF_TIMED_OUT);
    assert_in_range(ms_since(start), 20, PATIENCE_MS);
    assert_memory_equal(&arrival, &untouched, sizeof arrival);
    static const int waits[] = {0, PATIENCE_MS, -1};
    for (int i = 0; i < 3; i++) {
        offer_fd(&channel, client[0]);
        assert_ok(handoff_backend_accept(channel.backend, waits[i], &arrival));
        assert_same_socket(arrival.fd, client[0]);
        assert_int_equal(fcntl(arrival.fd, F_GETFD), FD_CLOEXEC);
        close(arrival.fd);
        assert_adopted(&channel);
    }
}

static void arrivals_may_be_adopted_and_rejected_later_and_in_any_order(void **state)
{
    (void)state;
    uint64_t offers[3], arrivals[3];
    for (int i = 0; i < 3; i++)
        offers[i] = offer_fd(&channel, client[0]);
    for (int i = 0; i < 3; i++)
        arrivals[i] = arrival_of(&channel).id;
    /* The end of the batch: from here on the broker is told at once. */
    assert_no_arrival(&channel);
    assert_int_equal(backend_statistics(channel.backend).held, 3);
    adopt(&channel, arrivals[2]);
    assert_int_equal(verdict_of(&channel).id, offers[2]);
    assert_ok(handoff_backend_reject(channel.backend, arrivals[0], HANDOFF_REASON_REJECTED));
    assert_int_equal(verdict_of(&channel).id, offers[0]);
    adopt(&channel, arrivals[1]);
    assert_int_equal(verdict_of(&channel).id, offers[1]);
    assert_int_equal(backend_statistics(channel.backend).held, 0);
}

static void arrival_is_settled_once_and_only_by_its_own_id(void **state)
{
    (void)state;
    int fd = 42;
    offer_fd(&channel, client[0]);
    uint64_t id = arrival_of(&channel).id;
    const uint64_t wrong[] = {0, id + 1, id ^ 1 << 12, id + (1 << 28), UINT64_MAX};
    for (size_t i = 0; i < sizeof wrong / sizeof wrong[0]; i++) {
        assert_invalid(handoff_backend_adopt(channel.backend, wrong[i], &fd));
        assert_invalid(
            handoff_backend_reject(channel.backend, wrong[i], HANDOFF_REASON_REJECTED));
    }
    assert_invalid(handoff_backend_reject(channel.backend, id, HANDOFF_REASON_NONE));
    assert_invalid(handoff_backend_reject(channel.backend, id, HANDOFF_REASON_TOO_MANY_CHANNELS + 1));
    assert_invalid(handoff_backend_reject(channel.backend, id, UINT32_MAX));
    assert_int_equal(fd, 42);
    assert_no_arrival(&channel);
    adopt(&channel, id);
    assert_invalid(handoff_backend_adopt(channel.backend, id, &fd));
    assert_invalid(handoff_backend_reject(channel.backend, id, HANDOFF_REASON_REJECTED));
    assert_adopted(&channel);
}

static void freed_backend_closes_what_it_holds_and_leaves_what_was_adopted(void **state)
{
    (void)state;
    int fd;
    char byte;
    offer_fd(&channel, client[0]);
    assert_ok(handoff_backend_adopt(channel.backend, arrival_of(&channel).id, &fd));
    offer_fd(&channel, client[0]);
    arrival_of(&channel);
    handoff_backend_free(channel.backend);
    channel.backend = NULL;
    assert_int_equal(access(channel.path, F_OK), -1);
    assert_int_equal(write(fd, "x", 1), 1);
    assert_int_equal(read(client[1], &byte, 1), 1);
    close(fd);
}

static int listen_given(int type)
{
    char path[90];
    snprintf(path, sizeof path, "%s/given", channel.directory);
    unlink(path);
    return listen_unix(path, type);
}

static void given_socket_serves_and_stays_the_callers(void **state)
{
    (void)state;
    int listener = listen_given(SOCK_SEQPACKET);
    char path[90];
    handoff_backend *backend;
    handoff_broker *broker;
    snprintf(path, sizeof path, "%s/given", channel.directory);
    for (int i = 0; i < 2; i++) {
        assert_ok(handoff_backend_listen_on(listener, NULL, &backend));
        assert_ok(handoff_broker_new(path, NULL, &broker));
        connect_broker(broker, backend);
        handoff_broker_free(broker);
        handoff_backend_free(backend);
        assert_int_equal(access(path, F_OK), 0);
    }
    assert_true(fcntl(listener, F_GETFL) & O_NONBLOCK);
    close(listener);
}

/* As systemd sets it with AcceptFileDescriptors=no; Linux knows that since 6.16. */
static void given_socket_that_took_no_descriptors_takes_them(void **state)
{
    (void)state;
    const int so_passrights = 83, off = 0;
    int listener = listen_given(SOCK_SEQPACKET);
    char path[90];
    handoff_backend *backend;
    handoff_broker *broker;
    snprintf(path, sizeof path, "%s/given", channel.directory);
    if (setsockopt(listener, SOL_SOCKET, so_passrights, &off, sizeof off) != 0)
        assert_int_equal(errno, ENOPROTOOPT);
    assert_ok(handoff_backend_listen_on(listener, NULL, &backend));
    assert_ok(handoff_broker_new(path, NULL, &broker));
    assert_int_not_equal(handoff_broker_fd(broker), -1);
    assert_ok(handoff_backend_dispatch(backend));
    assert_ok(handoff_broker_dispatch(broker));
    assert_int_equal(broker_statistics(broker).connects, 1);
    handoff_broker_free(broker);
    handoff_backend_free(backend);
    close(listener);
}

/* Whoever has a copy can do that: epoll(7) says for ever that there is something to accept. */
static void given_socket_that_is_shut_down_is_looked_at_now_and_then(void **state)
{
    (void)state;
    enum { TIME_MS = 500, MOST_TURNS = 20 };
    int listener = listen_given(SOCK_SEQPACKET), turns = 0;
    handoff_backend *backend;
    assert_ok(handoff_backend_listen_on(listener, NULL, &backend));
    assert_ok(handoff_backend_dispatch(backend));
    assert_int_equal(shutdown(listener, SHUT_RDWR), 0);
    struct pollfd readable = {.fd = handoff_backend_fd(backend), .events = POLLIN};
    for (uint64_t start = now_ns(); ms_since(start) < TIME_MS; turns++) {
        assert_int_not_equal(poll(&readable, 1, TIME_MS), -1);
        assert_ok(handoff_backend_dispatch(backend));
    }
    assert_in_range(turns, 2, MOST_TURNS);
    assert_in_range(backend_statistics(backend).system_errors, 1, MOST_TURNS);
    handoff_backend_free(backend);
    close(listener);
}

static void what_is_no_listening_socket_of_packets_is_refused(void **state)
{
    (void)state;
    handoff_backend *none = NULL;
    int stream = listen_given(SOCK_STREAM), deaf = socket(AF_UNIX, SOCK_SEQPACKET, 0);
    assert_invalid(handoff_backend_listen_on(stream, NULL, &none));
    assert_invalid(handoff_backend_listen_on(deaf, NULL, &none));
    assert_false(fcntl(stream, F_GETFL) & O_NONBLOCK);
    close(stream);
    close(deaf);
    assert_invalid_because(handoff_backend_listen_on(-1, NULL, &none), "fd is -1");
    int listener = listen_given(SOCK_SEQPACKET);
    rlim_t limit = allow_no_more_descriptors();
    assert_status(handoff_backend_listen_on(listener, NULL, &none),
                  HANDOFF_ERR_DESCRIPTOR_PRESSURE);
    assert_int_equal(errno, EMFILE);
    allow_descriptors(limit);
    close(listener);
    assert_null(none);
}

static void path_of_a_live_backend_is_left_alone(void **state)
{
    (void)state;
    handoff_backend *none = NULL;
    assert_status(handoff_backend_listen(channel.path, NULL, &none), HANDOFF_ERR_ADDRESS_IN_USE);
    assert_null(none);
    offer_fd(&channel, client[0]);
    adopt(&channel, arrival_of(&channel).id);
}

static void broker_that_the_policy_does_not_allow_gets_no_channel(void **state)
{
    (void)state;
    handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
    options.mode = 0666;
    open_again(&options);
    assert_int_equal(chmod(channel.directory, 0755), 0);
    pid_t child = start_child();
    if (child == 0) {
        handoff_broker *broker;
        become_nobody();
        assert_ok(handoff_broker_new(channel.path, NULL, &broker));
        handoff_offer offer = offer_of(client[0]);
        offer.timeout_ms = 50;
        handoff_verdict verdict = HANDOFF_VERDICT_INIT;
        assert_status(handoff_broker_offer_and_wait(broker, &offer, &verdict),
                      HANDOFF_ERR_PERMISSION_DENIED);
        assert_int_equal(broker_statistics(broker).connects, 0);
        _exit(0);
    }
    while (backend_statistics(channel.backend).refused == 0) {
        await_readable(handoff_backend_fd(channel.backend));
        assert_ok(handoff_backend_dispatch(channel.backend));
    }
    assert_child_succeeds(child);
    assert_int_equal(backend_statistics(channel.backend).channels, 1);
}

static void more_channels_than_may_be_are_refused_until_one_ends(void **state)
{
    (void)state;
    handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
    handoff_broker *second;
    options.max_channels = 1;
    open_again(&options);
    assert_ok(handoff_broker_new(channel.path, NULL, &second));
    assert_ok(handoff_broker_dispatch(second));
    assert_ok(handoff_backend_dispatch(channel.backend));
    assert_int_equal(backend_statistics(channel.backend).refused, 1);
    assert_int_equal(backend_statistics(channel.backend).channels, 1);
    handoff_broker_free(channel.broker);
    channel.broker = second;
    connect_broker(second, channel.backend);
    assert_int_equal(backend_statistics(channel.backend).accepted, 2);
}

static void bytes_beyond_what_may_be_held_are_rejected_as_busy(void **state)
{
    (void)state;
    static const uint8_t preread[100];
    handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
    handoff_offer offer = offer_of(client[0]);
    offer.preread = preread;
    offer.preread_len = sizeof preread;
    options.max_held_bytes = 2 * sizeof preread;
    open_again(&options);
    for (int i = 0; i < 3; i++)
        assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    uint64_t first = arrival_of(&channel).id;
    arrival_of(&channel);
    assert_no_arrival(&channel);
    assert_int_equal(backend_statistics(channel.backend).held_bytes, 2 * sizeof preread);
    assert_falls_back(&channel, HANDOFF_REASON_BACKEND_BUSY);
    adopt(&channel, first);
    assert_adopted(&channel);
    assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    arrival_of(&channel);
}

/* The verdict names the kind that is not taken; what is of none has another reason. */
static void assert_falls_back_for_kind(uint64_t taken, uint64_t kind)
{
    handoff_verdict verdict = verdict_of(&channel);
    uint64_t type = kind & ~(uint64_t)HANDOFF_KIND_UNCONNECTED;
    assert_int_equal(verdict.outcome, HANDOFF_FALLBACK);
    if (kind == HANDOFF_KIND_ANY) {
        assert_int_equal(verdict.reason, HANDOFF_REASON_CLIENT_UNSUPPORTED);
        assert_int_equal(verdict.kind, 0);
    } else {
        assert_int_equal(verdict.reason, HANDOFF_REASON_KIND);
        assert_int_equal(verdict.kind, taken & type ? HANDOFF_KIND_UNCONNECTED : type);
    }
}

static void assert_kind(int fd, uint64_t kind)
{
    for (uint64_t kinds = 0; kinds < 16; kinds++) {
        /* Refused: no socket is only that. */
        if (kinds == HANDOFF_KIND_UNCONNECTED)
            continue;
        handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
        options.kinds = kinds;
        open_again(&options);
        offer_fd(&channel, fd);
        uint64_t taken = kinds == 0 ? HANDOFF_KIND_STREAM : kinds;
        if ((taken & kind) == kind) {
            adopt(&channel, arrival_of(&channel).id);
            assert_adopted(&channel);
        } else {
            assert_no_arrival(&channel);
            assert_falls_back_for_kind(taken, kind);
            assert_int_equal(backend_statistics(channel.backend).rejected, 1);
        }
    }
}

static void sockets_are_taken_by_their_kinds(void **state)
{
    (void)state;
    int pair[2], tcp[2];
    struct sockaddr_in nobody = {.sin_family = AF_INET,
                                 .sin_port = htons(9),
                                 .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    make_tcp_pair(tcp);
    assert_kind(tcp[0], HANDOFF_KIND_STREAM);
    close(tcp[0]);
    close(tcp[1]);
    make_pair(SOCK_SEQPACKET, pair);
    assert_kind(pair[0], HANDOFF_KIND_SEQPACKET);
    close(pair[0]);
    close(pair[1]);
    int udp = socket(AF_INET, SOCK_DGRAM | SOCK_CLOEXEC, 0);
    assert_kind(udp, HANDOFF_KIND_DATAGRAM | HANDOFF_KIND_UNCONNECTED);
    assert_int_equal(connect(udp, (struct sockaddr *)&nobody, sizeof nobody), 0);
    assert_kind(udp, HANDOFF_KIND_DATAGRAM);
    close(udp);
    int listener = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(listen(listener, 1), 0);
    assert_kind(listener, HANDOFF_KIND_STREAM | HANDOFF_KIND_UNCONNECTED);
    close(listener);
    int raw = socket(AF_NETLINK, SOCK_RAW | SOCK_CLOEXEC, 0);
    assert_kind(raw, HANDOFF_KIND_ANY);
    close(raw);
}

static void draining_backend_finishes_what_arrived_and_frees_the_path(void **state)
{
    (void)state;
    handoff_offer offer = offer_of(client[0]);
    handoff_backend *successor;
    offer_fd(&channel, client[0]);
    uint64_t id = arrival_of(&channel).id;
    assert_ok(handoff_backend_drain(channel.backend));
    assert_ok(handoff_backend_drain(channel.backend));
    assert_no_verdict(&channel);
    assert_status(handoff_broker_offer(channel.broker, &offer, NULL),
                  HANDOFF_ERR_BACKEND_UNAVAILABLE);
    assert_int_equal(errno, ESHUTDOWN);
    assert_int_equal(backend_statistics(channel.backend).held, 1);
    assert_ok(handoff_backend_listen(channel.path, NULL, &successor));
    adopt(&channel, id);
    assert_adopted(&channel);
    assert_int_equal(backend_statistics(channel.backend).held, 0);
    handoff_backend_free(channel.backend);
    channel.backend = successor;
    connect_broker(channel.broker, successor);
    offer_fd(&channel, client[0]);
    adopt(&channel, arrival_of(&channel).id);
    assert_adopted(&channel);
}

/* However many packets it is in: after a dispatch that leaves nothing held the backend is freed. */
static void draining_backend_receives_all_that_was_sent_in_one_dispatch(void **state)
{
    (void)state;
    enum { MANY = 50 };
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    for (int i = 0; i < MANY; i++)
        offer_fd(&channel, client[0]);
    assert_ok(handoff_backend_drain(channel.backend));
    assert_ok(handoff_backend_dispatch(channel.backend));
    assert_int_equal(backend_statistics(channel.backend).held, MANY);
    while (handoff_backend_next(channel.backend, &arrival) == HANDOFF_OK)
        adopt(&channel, arrival.id);
    assert_int_equal(backend_statistics(channel.backend).held, 0);
    handoff_backend_free(channel.backend);
    channel.backend = NULL;
    for (int i = 0; i < MANY; i++)
        assert_adopted(&channel);
}

/* A loop that sleeps until the descriptor is readable frees the backend then. */
static void draining_backend_that_holds_nothing_wakes_its_loop_once(void **state)
{
    (void)state;
    int fd = handoff_backend_fd(channel.backend);
    offer_fd(&channel, client[0]);
    uint64_t id = arrival_of(&channel).id;
    assert_ok(handoff_backend_drain(channel.backend));
    receive_all(channel.backend);
    assert_false(is_readable(fd));
    adopt(&channel, id);
    for (int i = 0; i < 2; i++) {
        await_readable(fd);
        receive_all(channel.backend);
        assert_int_equal(backend_statistics(channel.backend).held, 0);
        assert_false(is_readable(fd));
        assert_ok(handoff_backend_drain(channel.backend));
    }
}

static void offer_and_adopt(int drains)
{
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    offer_fd(&channel, client[0]);
    assert_ok(handoff_backend_dispatch(channel.backend));
    if (drains)
        assert_ok(handoff_backend_drain(channel.backend));
    while (handoff_backend_next(channel.backend, &arrival) == HANDOFF_OK)
        adopt(&channel, arrival.id);
}

/* Where batches come often, the end of the last one does not cancel that. */
static void busy_backend_that_drains_wakes_its_loop_too(void **state)
{
    (void)state;
    for (int i = 0; i < 20; i++) {
        close_channel(&channel);
        open_channel(&channel, NULL, NULL);
        for (int batch = 0; batch < 4; batch++)
            offer_and_adopt(0);
        usleep(2000); /* The timer has fired, or was cancelled. */
        receive_all(channel.backend);
        for (int batch = 0; batch < 2; batch++)
            offer_and_adopt(batch == 1);
        await_readable(handoff_backend_fd(channel.backend));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CHANNEL_TEST(null_is_refused_and_takes_no_arrival),
        CHANNEL_TEST(misaligned_pointers_are_refused_and_take_no_arrival),
        CHANNEL_TEST(reserved_field_that_is_set_is_refused_and_named),
        CHANNEL_TEST(unknown_kinds_are_refused_and_named),
        CHANNEL_TEST(options_out_of_range_are_clamped),
        CHANNEL_TEST(accept_waits_as_long_as_it_is_told),
        CHANNEL_TEST(arrivals_may_be_adopted_and_rejected_later_and_in_any_order),
        CHANNEL_TEST(arrival_is_settled_once_and_only_by_its_own_id),
        CHANNEL_TEST(freed_backend_closes_what_it_holds_and_leaves_what_was_adopted),
        CHANNEL_TEST(given_socket_serves_and_stays_the_callers),
        CHANNEL_TEST(given_socket_that_took_no_descriptors_takes_them),
        CHANNEL_TEST(given_socket_that_is_shut_down_is_looked_at_now_and_then),
        CHANNEL_TEST(what_is_no_listening_socket_of_packets_is_refused),
        CHANNEL_TEST(path_of_a_live_backend_is_left_alone),
        CHANNEL_TEST(broker_that_the_policy_does_not_allow_gets_no_channel),
        CHANNEL_TEST(more_channels_than_may_be_are_refused_until_one_ends),
        CHANNEL_TEST(bytes_beyond_what_may_be_held_are_rejected_as_busy),
        CHANNEL_TEST(sockets_are_taken_by_their_kinds),
        CHANNEL_TEST(draining_backend_finishes_what_arrived_and_frees_the_path),
        CHANNEL_TEST(draining_backend_receives_all_that_was_sent_in_one_dispatch),
        CHANNEL_TEST(draining_backend_that_holds_nothing_wakes_its_loop_once),
        CHANNEL_TEST(busy_backend_that_drains_wakes_its_loop_too),
    };
    return RUN_TESTS(tests);
}
