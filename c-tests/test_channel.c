/* What an offer goes through, and what both ends say of it. */
#define _GNU_SOURCE
#include "fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <netinet/tcp.h>
#include <stdlib.h>
#include <string.h>
#include <sys/epoll.h>
#include <sys/socket.h>

/* The channel once more, with other limits. */
static void open_again(const handoff_broker_options *broker,
                       const handoff_backend_options *backend)
{
    close_channel(&channel);
    open_channel(&channel, broker, backend);
}

static void adopted_connection_is_the_one_that_was_offered(void **state)
{
    (void)state;
    handoff_offer offer = offer_of(client[0]);
    uint64_t id;
    int fd = -1;
    offer.user_data = misaligned();
    assert_ok(handoff_broker_offer(channel.broker, &offer, &id));
    handoff_arrival arrival = arrival_of(&channel);
    assert_ok(handoff_backend_adopt(channel.backend, arrival.id, &fd));
    assert_same_socket(fd, client[0]);
    assert_int_equal(fcntl(fd, F_GETFD), FD_CLOEXEC);
    handoff_verdict verdict = verdict_of(&channel);
    assert_int_equal(verdict.id, id);
    assert_ptr_equal(verdict.user_data, misaligned());
    assert_int_equal(verdict.outcome, HANDOFF_ADOPTED);
    assert_int_equal(verdict.reason, HANDOFF_REASON_NONE);
    assert_true(verdict.may_have_reached_backend);
    assert_no_verdict(&channel);
    assert_int_equal(write(fd, "hello", 5), 5);
    char answer[8];
    assert_int_equal(read(client[1], answer, sizeof answer), 5);
    close(fd);
}

static void flags_and_options_of_a_connection_are_left_alone(void **state)
{
    (void)state;
    static const int names[][2] = {{SOL_SOCKET, SO_KEEPALIVE}, {SOL_SOCKET, SO_SNDBUF},
                                   {SOL_SOCKET, SO_RCVTIMEO},  {SOL_SOCKET, SO_RCVLOWAT},
                                   {SOL_SOCKET, SO_LINGER},    {IPPROTO_TCP, TCP_NODELAY}};
    enum { OPTIONS = sizeof names / sizeof names[0] };
    for (int flags = 0; flags <= O_NONBLOCK; flags += O_NONBLOCK) {
        int ends[2], fd;
        char before[OPTIONS][32] = {{0}}, after[OPTIONS][32] = {{0}};
        socklen_t len;
        make_tcp_pair(ends);
        assert_int_equal(fcntl(ends[0], F_SETFL, O_RDWR | flags), 0);
        int status_flags = fcntl(ends[0], F_GETFL), descriptor_flags = fcntl(ends[0], F_GETFD);
        for (int i = 0; i < OPTIONS; i++, len = 0) {
            len = sizeof before[i];
            assert_int_equal(getsockopt(ends[0], names[i][0], names[i][1], before[i], &len), 0);
        }
        offer_fd(&channel, ends[0]);
        assert_ok(handoff_backend_adopt(channel.backend, arrival_of(&channel).id, &fd));
        assert_adopted(&channel);
        for (int i = 0; i < OPTIONS; i++) {
            len = sizeof after[i];
            assert_int_equal(getsockopt(fd, names[i][0], names[i][1], after[i], &len), 0);
        }
        assert_memory_equal(before, after, sizeof before);
        assert_int_equal(fcntl(fd, F_GETFL), status_flags);
        assert_int_equal(fcntl(ends[0], F_GETFL), status_flags);
        assert_int_equal(fcntl(ends[0], F_GETFD), descriptor_flags);
        close(fd);
        close(ends[0]);
        close(ends[1]);
    }
}

static void arrival_brings_all_that_the_broker_said(void **state)
{
    (void)state;
    static const uint8_t preread[] = "GET /\0 HTTP/1.1", metadata[] = "\0\1\2\0";
    handoff_offer offer = offer_of(client[0]);
    offer.preread = preread;
    offer.preread_len = sizeof preread;
    offer.metadata = metadata;
    offer.metadata_len = sizeof metadata;
    offer.service = "web";
    offer.correlation = "request 7";
    assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    handoff_arrival arrival = arrival_of(&channel);
    assert_int_equal(arrival.preread_len, sizeof preread);
    assert_memory_equal(arrival.preread, preread, sizeof preread);
    assert_int_equal(arrival.metadata_len, sizeof metadata);
    assert_memory_equal(arrival.metadata, metadata, sizeof metadata);
    assert_string_equal(arrival.service, "web");
    assert_string_equal(arrival.correlation, "request 7");
    assert_int_equal(arrival.broker_pid, getpid());
    assert_int_equal(arrival.broker_uid, geteuid());
    assert_int_equal(arrival.broker_gid, getegid());
    adopt(&channel, arrival.id);
    /* Still there, until the next dispatch. */
    assert_memory_equal(arrival.preread, preread, sizeof preread);
}

static void offer_preread(const char *preread)
{
    handoff_offer offer = offer_of(client[0]);
    offer.preread = preread;
    offer.preread_len = strlen(preread);
    assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
}

/* One packet each, and the verdicts on the first go out before the second is looked at. */
static void bytes_of_an_arrival_stay_while_the_next_packet_is_looked_at(void **state)
{
    (void)state;
    const char *prereads[] = {"the first", "the second", "the third"};
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    handoff_arrival arrivals[3] = {HANDOFF_ARRIVAL_INIT, HANDOFF_ARRIVAL_INIT,
                                   HANDOFF_ARRIVAL_INIT};
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    int count = 0, again = 0;
    close_channel(&channel);
    options.max_in_flight = 2; /* so that a slot is used again at once */
    open_channel(&channel, &options, NULL);
    offer_preread(prereads[0]);
    offer_preread(prereads[1]);
    assert_ok(handoff_backend_dispatch(channel.backend));
    for (; next_arrival(channel.backend, &arrivals[count]); count++) {
        adopt(&channel, arrivals[count].id);
        /* The broker has the token of the first again, and uses it. */
        assert_ok(handoff_broker_dispatch(channel.broker));
        while (next_verdict(channel.broker, &verdict))
            ;
        for (; again == 0 && handoff_broker_room(channel.broker) > 0; again++)
            offer_preread(prereads[2]);
    }
    assert_int_equal(count, 2);
    assert_int_equal(again, 1);
    for (int i = 0; i < 2; i++)
        assert_memory_equal(arrivals[i].preread, prereads[i], strlen(prereads[i]));
    arrivals[2] = arrival_of(&channel);
    assert_memory_equal(arrivals[2].preread, prereads[2], strlen(prereads[2]));
}

static void arrival_of_a_bare_connection_has_empty_parts(void **state)
{
    (void)state;
    offer_fd(&channel, client[0]);
    handoff_arrival arrival = arrival_of(&channel);
    assert_int_equal(arrival.preread_len, 0);
    assert_int_equal(arrival.metadata_len, 0);
    assert_string_equal(arrival.service, "");
    assert_string_equal(arrival.correlation, "");
}

static void offer_may_have_as_many_bytes_as_the_backend_takes_and_not_one_more(void **state)
{
    (void)state;
    enum { MOST = 65536 }; /* By default. */
    uint8_t *bytes = malloc(MOST);
    char name[257];
    uint64_t id = 42;
    memset(bytes, 'b', MOST);
    memset(name, 'n', 256);
    name[256] = '\0';
    handoff_offer offer = offer_of(client[0]);
    offer.service = offer.correlation = name + 1;
    offer.preread = offer.metadata = bytes;
    offer.preread_len = MOST - 510 - 1000;
    offer.metadata_len = 1001;
    assert_status(handoff_broker_offer(channel.broker, &offer, &id), HANDOFF_ERR_TOO_LARGE);
    offer.metadata_len = 1000;
    assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    handoff_arrival arrival = arrival_of(&channel);
    assert_string_equal(arrival.service, name + 1);
    assert_string_equal(arrival.correlation, name + 1);
    assert_int_equal(arrival.preread_len, offer.preread_len);
    assert_int_equal(arrival.metadata_len, offer.metadata_len);
    assert_memory_equal(arrival.preread, bytes, offer.preread_len);
    offer = offer_of(client[0]);
    offer.service = name;
    assert_status(handoff_broker_offer(channel.broker, &offer, &id), HANDOFF_ERR_TOO_LARGE);
    offer.service = NULL;
    offer.correlation = name;
    assert_status(handoff_broker_offer(channel.broker, &offer, &id), HANDOFF_ERR_TOO_LARGE);
    assert_int_equal(id, 42);
    free(bytes);
}

/* The limit of a packet, less its header and the fixed part of an offer. It holds whatever a backend
   says that it takes, so it is the broker's before there is one. */
static void no_offer_is_larger_than_a_packet(void **state)
{
    (void)state;
    enum { MOST = 131000 };
    static uint8_t bytes[MOST + 1];
    handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
    options.max_offer_bytes = SIZE_MAX;
    options.max_held_bytes = SIZE_MAX;
    handoff_broker *other;
    close_channel(&channel);
    open_channel(&channel, NULL, &options);
    handoff_offer offer = offer_of(client[0]);
    offer.preread = bytes;
    offer.preread_len = MOST;
    assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    assert_int_equal(arrival_of(&channel).preread_len, MOST);
    assert_ok(handoff_broker_new("@handoff-test-channel-nobody", NULL, &other));
    assert_status(handoff_broker_offer(other, &offer, NULL), HANDOFF_ERR_BACKEND_UNAVAILABLE);
    offer.preread_len = MOST + 1;
    assert_status(handoff_broker_offer(other, &offer, NULL), HANDOFF_ERR_TOO_LARGE);
    handoff_broker_free(other);
}

static void what_is_not_a_socket_is_refused(void **state)
{
    (void)state;
    int ends[2];
    uint64_t id = 42;
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    handoff_offer offer = offer_of(ends[0]);
    assert_invalid(handoff_broker_offer(channel.broker, &offer, &id));
    assert_int_equal(errno, ENOTSOCK);
    close(ends[0]);
    close(ends[1]);
    assert_invalid(handoff_broker_offer(channel.broker, &offer, &id));
    assert_int_equal(errno, EBADF);
    assert_int_equal(id, 42);
    assert_no_arrival(&channel);
    assert_int_equal(broker_statistics(channel.broker).refused, 2);
    assert_int_equal(broker_statistics(channel.broker).in_flight, 0);
}

static void offers_that_say_more_are_sent_by_flush_and_not_before(void **state)
{
    (void)state;
    enum { OFFERS = 200 };
    handoff_offer offer = offer_of(client[0]);
    offer.flags = HANDOFF_OFFER_MORE;
    for (int i = 0; i < OFFERS; i++)
        assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    assert_no_arrival(&channel);
    assert_true(broker_statistics(channel.broker).queued_bytes > 0);
    assert_ok(handoff_broker_flush(channel.broker));
    assert_int_equal(broker_statistics(channel.broker).queued_bytes, 0);
    for (int i = 0; i < OFFERS; i++)
        arrival_of(&channel);
    assert_no_arrival(&channel);
}

static void last_offer_of_several_sends_them_all_in_their_order(void **state)
{
    (void)state;
    static const uint8_t bytes[] = "123";
    handoff_offer offer = offer_of(client[0]);
    offer.preread_len = 1;
    for (int i = 0; i < 3; i++) {
        offer.preread = &bytes[i];
        offer.flags = i < 2 ? HANDOFF_OFFER_MORE : 0;
        assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    }
    for (int i = 0; i < 3; i++)
        assert_memory_equal(arrival_of(&channel).preread, &bytes[i], 1);
}

static void assert_full_after(size_t offers)
{
    handoff_offer offer = offer_of(client[0]);
    uint64_t id = 42;
    for (size_t i = 0; i < offers; i++)
        offer_fd(&channel, client[0]);
    assert_status(handoff_broker_offer(channel.broker, &offer, &id), HANDOFF_ERR_FULL);
    assert_int_equal(id, 42);
    assert_int_equal(broker_statistics(channel.broker).in_flight, offers);
    /* One goes, and one may come. */
    adopt(&channel, arrival_of(&channel).id);
    for (size_t i = 1; i < offers; i++)
        arrival_of(&channel);
    assert_no_arrival(&channel);
    assert_adopted(&channel);
    offer_fd(&channel, client[0]);
    assert_status(handoff_broker_offer(channel.broker, &offer, NULL), HANDOFF_ERR_FULL);
}

static void broker_with_its_most_in_flight_refuses_offers_until_a_verdict_comes(void **state)
{
    (void)state;
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    options.max_in_flight = 2;
    open_again(&options, NULL);
    assert_full_after(2);
}

static void backend_with_its_most_in_flight_refuses_offers_until_a_verdict_comes(void **state)
{
    (void)state;
    handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
    options.max_in_flight = 3;
    open_again(NULL, &options);
    assert_full_after(3);
}

static void verdicts_that_nobody_takes_refuse_offers(void **state)
{
    (void)state;
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    handoff_offer offer = offer_of(client[0]);
    options.max_in_flight = 1;
    open_again(&options, NULL);
    offer_fd(&channel, client[0]);
    adopt(&channel, arrival_of(&channel).id);
    assert_ok(handoff_broker_dispatch(channel.broker));
    assert_status(handoff_broker_offer(channel.broker, &offer, NULL), HANDOFF_ERR_FULL);
    assert_adopted(&channel);
    offer_fd(&channel, client[0]);
}

static void room_is_as_many_offers_as_are_taken_while_verdicts_are_left(void **state)
{
    (void)state;
    enum { MOST = 4 };
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    options.max_in_flight = MOST;
    open_again(&options, NULL);
    for (int left = 1; left < MOST; left++) {
        offer_fd(&channel, client[0]);
        adopt(&channel, arrival_of(&channel).id);
        assert_ok(handoff_backend_dispatch(channel.backend));
        assert_ok(handoff_broker_dispatch(channel.broker));
        assert_int_equal(handoff_broker_room(channel.broker), MOST);
    }
    for (int i = 0; i < MOST; i++)
        offer_fd(&channel, client[0]);
    assert_int_equal(handoff_broker_room(channel.broker), 0);
    /* A place, but the limit of verdicts is reached. */
    adopt(&channel, arrival_of(&channel).id);
    assert_ok(handoff_backend_dispatch(channel.backend));
    assert_ok(handoff_broker_dispatch(channel.broker));
    assert_int_equal(handoff_broker_room(channel.broker), 0);
    for (int i = 0; i < MOST; i++)
        assert_adopted(&channel);
    assert_int_equal(handoff_broker_room(channel.broker), 1);
}

static void what_the_socket_does_not_take_waits_within_its_limit_and_arrives_in_order(void **state)
{
    (void)state;
    enum { LEN = 30000 };
    static uint8_t bytes[LEN];
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    handoff_offer offer = offer_of(client[0]);
    handoff_status status;
    uint32_t offered = 0;
    options.queue_bytes = 300000;
    open_again(&options, NULL);
    offer.preread = bytes;
    offer.preread_len = LEN;
    for (;; offered++) {
        memcpy(bytes, &offered, sizeof offered);
        status = handoff_broker_offer(channel.broker, &offer, NULL);
        if (status != HANDOFF_OK)
            break;
        assert_true(broker_statistics(channel.broker).queued_bytes <= options.queue_bytes);
    }
    assert_int_equal(status, HANDOFF_ERR_FULL);
    assert_true(broker_statistics(channel.broker).queued_bytes > options.queue_bytes - 2 * LEN);
    assert_true(offered < 256);
    for (uint32_t i = 0; i < offered; i++) {
        handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
        uint32_t number;
        assert_ok(handoff_backend_dispatch(channel.backend));
        assert_ok(handoff_broker_dispatch(channel.broker));
        assert_ok(handoff_backend_next(channel.backend, &arrival));
        memcpy(&number, arrival.preread, sizeof number);
        assert_int_equal(number, i);
        assert_int_equal(arrival.preread_len, LEN);
        adopt(&channel, arrival.id);
    }
    assert_int_equal(broker_statistics(channel.broker).queued_bytes, 0);
}

/* The broker's descriptor may be readable for nothing before. */
static void await_in_flight(size_t count)
{
    while (broker_statistics(channel.broker).in_flight > count) {
        await_readable(handoff_broker_fd(channel.broker));
        assert_ok(handoff_broker_dispatch(channel.broker));
    }
}

static void offer_is_taken_back_at_its_own_deadline(void **state)
{
    (void)state;
    handoff_offer offer = offer_of(client[0]);
    uint64_t start = now_ns(), id;
    offer.timeout_ms = 20;
    offer_fd(&channel, client[0]);
    assert_ok(handoff_broker_offer(channel.broker, &offer, &id));
    uint64_t patient = arrival_of(&channel).id, late = arrival_of(&channel).id;
    await_in_flight(1);
    handoff_verdict verdict = verdict_of(&channel);
    assert_in_range(ms_since(start), 20, PATIENCE_MS);
    assert_int_equal(verdict.id, id);
    assert_int_equal(verdict.outcome, HANDOFF_FALLBACK);
    assert_int_equal(verdict.reason, HANDOFF_REASON_ACK_TIMEOUT);
    assert_true(verdict.may_have_reached_backend);
    int fd = 42;
    assert_status(handoff_backend_adopt(channel.backend, late, &fd), HANDOFF_ERR_TAKEN_BACK);
    assert_int_equal(fd, 42);
    assert_invalid(handoff_backend_adopt(channel.backend, late, &fd));
    adopt(&channel, patient);
    assert_adopted(&channel);
    assert_no_verdict(&channel);
}

static void offer_without_a_timeout_has_the_brokers(void **state)
{
    (void)state;
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    handoff_offer offer = offer_of(client[0]);
    options.timeout_ms = 20;
    open_again(&options, NULL);
    offer.timeout_ms = HANDOFF_NO_TIMEOUT;
    offer_fd(&channel, client[0]);
    assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    await_in_flight(1);
    assert_falls_back(&channel, HANDOFF_REASON_ACK_TIMEOUT);
    assert_no_verdict(&channel);
    assert_int_equal(broker_statistics(channel.broker).in_flight, 1);
}

static void adoption_before_the_deadline_stands_however_late_the_broker_hears_of_it(void **state)
{
    (void)state;
    handoff_offer offer = offer_of(client[0]);
    offer.timeout_ms = 20;
    assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    offer.timeout_ms = 0;
    assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    /* Not told at once, because another arrival is held. */
    adopt(&channel, arrival_of(&channel).id);
    await_readable(handoff_broker_fd(channel.broker));
    assert_adopted(&channel);
    arrival_of(&channel);
    assert_no_arrival(&channel);
    assert_no_verdict(&channel);
}

static void offer_taken_back_cannot_be_adopted_and_has_no_verdict(void **state)
{
    (void)state;
    int fd;
    uint64_t id = offer_fd(&channel, client[0]), arrival = arrival_of(&channel).id;
    assert_ok(handoff_broker_take_back(channel.broker, id));
    assert_status(handoff_broker_take_back(channel.broker, id), HANDOFF_ERR_TOO_LATE);
    assert_status(handoff_backend_adopt(channel.backend, arrival, &fd), HANDOFF_ERR_TAKEN_BACK);
    assert_no_verdict(&channel);
    assert_int_equal(broker_statistics(channel.broker).taken_back, 1);
    assert_int_equal(broker_statistics(channel.broker).in_flight, 0);
    assert_int_equal(backend_statistics(channel.backend).taken_back, 1);
    offer_fd(&channel, client[0]);
    adopt(&channel, arrival_of(&channel).id);
    assert_adopted(&channel);
}

static void offer_taken_back_before_it_is_sent_never_arrives(void **state)
{
    (void)state;
    handoff_offer offer = offer_of(client[0]);
    uint64_t first, second;
    offer.flags = HANDOFF_OFFER_MORE;
    assert_ok(handoff_broker_offer(channel.broker, &offer, &first));
    assert_ok(handoff_broker_offer(channel.broker, &offer, &second));
    assert_ok(handoff_broker_take_back(channel.broker, first));
    assert_ok(handoff_broker_flush(channel.broker));
    adopt(&channel, arrival_of(&channel).id);
    assert_no_arrival(&channel);
    assert_int_equal(backend_statistics(channel.backend).arrived, 1);
    assert_int_equal(verdict_of(&channel).id, second);
}

static void taking_back_is_too_late_after_the_adoption_and_after_the_verdict(void **state)
{
    (void)state;
    uint64_t id = offer_fd(&channel, client[0]);
    adopt(&channel, arrival_of(&channel).id);
    assert_status(handoff_broker_take_back(channel.broker, id), HANDOFF_ERR_TOO_LATE);
    assert_int_equal(errno, 0);
    assert_int_equal(verdict_of(&channel).id, id);
    assert_status(handoff_broker_take_back(channel.broker, id), HANDOFF_ERR_TOO_LATE);
    assert_int_equal(broker_statistics(channel.broker).taken_back, 0);
}

/* Before the backend says so: it keeps its verdict for that on the other arrival. */
static void taking_back_that_is_too_late_has_the_verdict_at_once(void **state)
{
    (void)state;
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    handoff_offer offer = offer_of(client[0]);
    uint64_t first, second;
    offer.flags = HANDOFF_OFFER_MORE;
    assert_ok(handoff_broker_offer(channel.broker, &offer, &first));
    assert_ok(handoff_broker_offer(channel.broker, &offer, &second));
    assert_ok(handoff_broker_flush(channel.broker));
    uint64_t arrival = arrival_of(&channel).id;
    struct epoll_event event = {.events = EPOLLIN | EPOLLET};
    int epoll = epoll_create1(EPOLL_CLOEXEC);
    assert_int_equal(epoll_ctl(epoll, EPOLL_CTL_ADD, handoff_broker_fd(channel.broker), &event), 0);
    while (epoll_wait(epoll, &event, 1, 0) == 1)
        assert_no_verdict(&channel);
    adopt(&channel, arrival);
    assert_status(handoff_broker_take_back(channel.broker, first), HANDOFF_ERR_TOO_LATE);
    assert_int_equal(epoll_wait(epoll, &event, 1, PATIENCE_MS), 1);
    close(epoll);
    assert_ok(handoff_broker_next(channel.broker, &verdict));
    assert_int_equal(verdict.id, first);
    assert_int_equal(verdict.outcome, HANDOFF_ADOPTED);
    assert_int_equal(verdict.reason, HANDOFF_REASON_NONE);
    assert_int_equal(broker_statistics(channel.broker).in_flight, 1);
    /* Now it says so, with the other one. */
    adopt(&channel, arrival_of(&channel).id);
    assert_int_equal(verdict_of(&channel).id, second);
    assert_no_verdict(&channel);
    assert_int_equal(broker_statistics(channel.broker).adopted, 2);
}

static void rejection_tells_the_broker_its_reason(void **state)
{
    (void)state;
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    options.max_failures = 100;
    open_again(&options, NULL);
    handoff_reason reason = HANDOFF_REASON_CLIENT_UNSUPPORTED;
    for (; reason <= HANDOFF_REASON_KIND; reason++) {
        offer_fd(&channel, client[0]);
        assert_ok(handoff_backend_reject(channel.backend, arrival_of(&channel).id, reason));
        assert_falls_back(&channel, reason);
        assert_int_equal(broker_statistics(channel.broker).fallbacks[reason], 1);
    }
}

static void close_tells_what_became_of_every_offer(void **state)
{
    (void)state;
    handoff_offer unsent = offer_of(client[0]);
    unsent.flags = HANDOFF_OFFER_MORE;
    for (int i = 0; i < 4; i++)
        offer_fd(&channel, client[0]);
    assert_ok(handoff_broker_offer(channel.broker, &unsent, NULL));
    handoff_arrival arrival = arrival_of(&channel);
    assert_ok(handoff_backend_reject(channel.backend, arrival.id, HANDOFF_REASON_REJECTED));
    assert_ok(handoff_backend_dispatch(channel.backend));
    /* Adopted, but the broker has not been told. */
    adopt(&channel, arrival_of(&channel).id);
    assert_ok(handoff_broker_close(channel.broker));

    static const struct {
        handoff_outcome outcome;
        handoff_reason reason;
        bool may_have_reached;
    } expected[] = {{HANDOFF_FALLBACK, HANDOFF_REASON_REJECTED, true},
                    {HANDOFF_ADOPTED, HANDOFF_REASON_NONE, true},
                    {HANDOFF_FALLBACK, HANDOFF_REASON_BROKER_CLOSED, true},
                    {HANDOFF_FALLBACK, HANDOFF_REASON_BROKER_CLOSED, true},
                    {HANDOFF_FALLBACK, HANDOFF_REASON_BROKER_CLOSED, false}};
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    for (int i = 0; i < 5; i++) {
        assert_ok(handoff_broker_next(channel.broker, &verdict));
        assert_int_equal(verdict.outcome, expected[i].outcome);
        assert_int_equal(verdict.reason, expected[i].reason);
        assert_int_equal(verdict.may_have_reached_backend, expected[i].may_have_reached);
    }
    assert_status(handoff_broker_next(channel.broker, &verdict), HANDOFF_NOTHING);
    assert_int_equal(broker_statistics(channel.broker).in_flight, 0);
    assert_int_equal(broker_statistics(channel.broker).queued_bytes, 0);
    assert_no_arrival(&channel);
}

/* More frames than the broker receives in a turn. */
static void everything_that_the_backend_said_counts_at_the_end(void **state)
{
    (void)state;
    enum { OFFERS = 200 };
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    for (int rejects = 0; rejects < 2; rejects++) {
        for (int i = 0; i < OFFERS; i++) {
            offer_fd(&channel, client[0]);
            arrival = arrival_of(&channel);
            if (rejects)
                assert_ok(handoff_backend_reject(channel.backend, arrival.id,
                                                 HANDOFF_REASON_BACKEND_BUSY));
            else
                adopt(&channel, arrival.id);
        }
        assert_false(next_arrival(channel.backend, &arrival));
        if (rejects) {
            assert_ok(handoff_broker_close(channel.broker));
        } else {
            handoff_offer offer = offer_of(client[0]);
            handoff_backend_free(channel.backend);
            channel.backend = NULL;
            assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
        }
        for (int i = 0; i < OFFERS; i++) {
            assert_true(next_verdict(channel.broker, &verdict));
            assert_int_equal(verdict.outcome, rejects ? HANDOFF_FALLBACK : HANDOFF_ADOPTED);
            assert_int_equal(verdict.reason,
                             rejects ? HANDOFF_REASON_BACKEND_BUSY : HANDOFF_REASON_NONE);
        }
        open_again(NULL, NULL);
    }
}

static void freed_broker_takes_back_what_is_in_flight(void **state)
{
    (void)state;
    int fd;
    offer_fd(&channel, client[0]);
    offer_fd(&channel, client[0]);
    uint64_t id = arrival_of(&channel).id;
    handoff_broker_free(channel.broker);
    channel.broker = NULL;
    assert_status(handoff_backend_adopt(channel.backend, id, &fd), HANDOFF_ERR_TAKEN_BACK);
    assert_no_arrival(&channel);
    assert_int_equal(backend_statistics(channel.backend).taken_back, 2);
    assert_int_equal(backend_statistics(channel.backend).held, 0);
    assert_int_equal(backend_statistics(channel.backend).channels, 0);
}

static void statistics_of_both_ends_add_up(void **state)
{
    (void)state;
    enum { OFFERS = 60 };
    handoff_offer offer = offer_of(client[0]);
    uint64_t ids[OFFERS];
    for (int i = 0; i < OFFERS; i++) {
        offer.timeout_ms = i % 5 == 4 ? 1 : 0;
        assert_ok(handoff_broker_offer(channel.broker, &offer, &ids[i]));
    }
    for (int i = 0; i < OFFERS / 5; i++)
        assert_ok(handoff_broker_take_back(channel.broker, ids[5 * i]));
    while (broker_statistics(channel.broker).fallbacks[HANDOFF_REASON_ACK_TIMEOUT] < OFFERS / 5) {
        await_readable(handoff_broker_fd(channel.broker));
        assert_ok(handoff_broker_dispatch(channel.broker));
    }
    for (int i = 0; i < OFFERS / 5; i++) {
        adopt(&channel, arrival_of(&channel).id);
        uint64_t id = arrival_of(&channel).id;
        assert_ok(handoff_backend_reject(channel.backend, id, HANDOFF_REASON_BACKEND_BUSY));
        arrival_of(&channel);
    }
    assert_no_arrival(&channel);
    assert_int_equal(backend_statistics(channel.backend).held, OFFERS / 5);
    assert_ok(handoff_broker_close(channel.broker));

    handoff_broker_statistics broker = broker_statistics(channel.broker);
    handoff_backend_statistics backend = backend_statistics(channel.backend);
    uint64_t fallbacks = 0;
    for (int i = 0; i < 32; i++)
        fallbacks += broker.fallbacks[i];
    assert_int_equal(broker.offered, OFFERS);
    assert_int_equal(broker.adopted + broker.taken_back + fallbacks, OFFERS);
    assert_int_equal(broker.fallbacks[HANDOFF_REASON_BACKEND_BUSY], OFFERS / 5);
    assert_int_equal(broker.fallbacks[HANDOFF_REASON_ACK_TIMEOUT], OFFERS / 5);
    assert_int_equal(broker.fallbacks[HANDOFF_REASON_BROKER_CLOSED], OFFERS / 5);
    assert_int_equal(backend.arrived, broker.offered);
    assert_int_equal(backend.adopted, broker.adopted);
    assert_int_equal(backend.rejected, broker.fallbacks[HANDOFF_REASON_BACKEND_BUSY]);
    assert_int_equal(backend.taken_back + backend.held,
                     OFFERS - backend.adopted - backend.rejected);
    for (uint64_t i = 0; i < broker.adopted + fallbacks; i++) {
        handoff_verdict verdict = HANDOFF_VERDICT_INIT;
        assert_ok(handoff_broker_next(channel.broker, &verdict));
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CHANNEL_TEST(adopted_connection_is_the_one_that_was_offered),
        CHANNEL_TEST(flags_and_options_of_a_connection_are_left_alone),
        CHANNEL_TEST(arrival_brings_all_that_the_broker_said),
        CHANNEL_TEST(bytes_of_an_arrival_stay_while_the_next_packet_is_looked_at),
        CHANNEL_TEST(arrival_of_a_bare_connection_has_empty_parts),
        CHANNEL_TEST(offer_may_have_as_many_bytes_as_the_backend_takes_and_not_one_more),
        CHANNEL_TEST(no_offer_is_larger_than_a_packet),
        CHANNEL_TEST(what_is_not_a_socket_is_refused),
        CHANNEL_TEST(offers_that_say_more_are_sent_by_flush_and_not_before),
        CHANNEL_TEST(last_offer_of_several_sends_them_all_in_their_order),
        CHANNEL_TEST(broker_with_its_most_in_flight_refuses_offers_until_a_verdict_comes),
        CHANNEL_TEST(backend_with_its_most_in_flight_refuses_offers_until_a_verdict_comes),
        CHANNEL_TEST(verdicts_that_nobody_takes_refuse_offers),
        CHANNEL_TEST(room_is_as_many_offers_as_are_taken_while_verdicts_are_left),
        CHANNEL_TEST(what_the_socket_does_not_take_waits_within_its_limit_and_arrives_in_order),
        CHANNEL_TEST(offer_is_taken_back_at_its_own_deadline),
        CHANNEL_TEST(offer_without_a_timeout_has_the_brokers),
        CHANNEL_TEST(adoption_before_the_deadline_stands_however_late_the_broker_hears_of_it),
        CHANNEL_TEST(offer_taken_back_cannot_be_adopted_and_has_no_verdict),
        CHANNEL_TEST(offer_taken_back_before_it_is_sent_never_arrives),
        CHANNEL_TEST(taking_back_is_too_late_after_the_adoption_and_after_the_verdict),
        CHANNEL_TEST(taking_back_that_is_too_late_has_the_verdict_at_once),
        CHANNEL_TEST(rejection_tells_the_broker_its_reason),
        CHANNEL_TEST(close_tells_what_became_of_every_offer),
        CHANNEL_TEST(everything_that_the_backend_said_counts_at_the_end),
        CHANNEL_TEST(freed_broker_takes_back_what_is_in_flight),
        CHANNEL_TEST(statistics_of_both_ends_add_up),
    };
    return RUN_TESTS(tests);
}
