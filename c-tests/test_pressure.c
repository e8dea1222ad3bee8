/* Connections that change under way, and limits on descriptors. */
#define _GNU_SOURCE
#include "fixture.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>

static void connection_swapped_for_another_before_it_is_sent_is_refused(void **state)
{
    (void)state;
    int other[2], fd = dup(client[0]);
    handoff_offer offer = offer_of(fd);
    make_pair(SOCK_STREAM, other);
    offer.flags = HANDOFF_OFFER_MORE;
    assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    assert_int_equal(dup2(other[0], fd), fd);
    assert_ok(handoff_broker_flush(channel.broker));
    assert_no_arrival(&channel);
    assert_falls_back(&channel, HANDOFF_REASON_INTEGRITY_MISMATCH);
    /* Only this offer: the channel goes on. */
    offer_fd(&channel, fd);
    adopt(&channel, arrival_of(&channel).id);
    assert_adopted(&channel);
    close(fd);
    close(other[0]);
    close(other[1]);
}

static void connection_closed_before_it_is_sent_falls_back_and_no_other(void **state)
{
    (void)state;
    enum { OFFERS = 9, CLOSED = 4 };
    int fds[OFFERS];
    for (int i = 0; i < OFFERS; i++) {
        fds[i] = dup(client[0]);
        handoff_offer offer = offer_of(fds[i]);
        offer.flags = HANDOFF_OFFER_MORE;
        offer.user_data = &fds[i];
        assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    }
    close(fds[CLOSED]);
    assert_ok(handoff_broker_flush(channel.broker));
    handoff_verdict verdict = verdict_of(&channel);
    assert_ptr_equal(verdict.user_data, &fds[CLOSED]);
    assert_int_equal(verdict.outcome, HANDOFF_FALLBACK);
    assert_int_equal(verdict.reason, HANDOFF_REASON_CLIENT_GONE);
    assert_false(verdict.may_have_reached_backend);
    for (int i = 1; i < OFFERS; i++)
        adopt(&channel, arrival_of(&channel).id);
    for (int i = 1; i < OFFERS; i++)
        assert_adopted(&channel);
    for (int i = 0; i < OFFERS; i++)
        if (i != CLOSED)
            close(fds[i]);
}

static void backend_short_of_descriptors_takes_what_it_can_and_says_so_of_the_rest(void **state)
{
    (void)state;
    skip_under_valgrind("the kernel goes on installing descriptors beyond the limit");
    enum { OFFERS = 6, ROOM = 3 };
    int room[ROOM];
    uint64_t ids[OFFERS];
    for (int i = 0; i < ROOM; i++)
        room[i] = fcntl(client[0], F_DUPFD_CLOEXEC, 0);
    rlim_t limit = allow_no_more_descriptors();
    for (int i = 0; i < ROOM; i++)
        close(room[i]);
    for (int i = 0; i < OFFERS; i++) {
        handoff_offer offer = offer_of(client[0]);
        offer.flags = i + 1 < OFFERS ? HANDOFF_OFFER_MORE : 0;
        assert_ok(handoff_broker_offer(channel.broker, &offer, &ids[i]));
    }
    assert_ok(handoff_backend_dispatch(channel.backend));
    allow_descriptors(limit);
    handoff_backend_statistics statistics = backend_statistics(channel.backend);
    assert_int_equal(statistics.system_errors, OFFERS - ROOM);
    assert_int_equal(statistics.system_errno, EMFILE);
    for (int i = ROOM; i < OFFERS; i++) {
        handoff_verdict verdict = verdict_of(&channel);
        assert_int_equal(verdict.id, ids[i]);
        assert_int_equal(verdict.outcome, HANDOFF_FALLBACK);
        assert_int_equal(verdict.reason, HANDOFF_REASON_DESCRIPTOR_PRESSURE);
    }
    for (int i = 0; i < ROOM; i++)
        adopt(&channel, arrival_of(&channel).id);
    for (int i = 0; i < ROOM; i++)
        assert_adopted(&channel);
    assert_no_arrival(&channel);
    offer_fd(&channel, client[0]);
    adopt(&channel, arrival_of(&channel).id);
    assert_adopted(&channel);
}

static void broker_that_comes_while_there_are_no_descriptors_is_accepted_later(void **state)
{
    (void)state;
    handoff_broker *second;
    skip_under_valgrind("it accepts, closes and then says EMFILE");
    assert_ok(handoff_broker_new(channel.path, NULL, &second));
    assert_ok(handoff_broker_dispatch(second));
    rlim_t limit = allow_no_more_descriptors();
    assert_ok(handoff_backend_dispatch(channel.backend));
    allow_descriptors(limit);
    assert_int_equal(backend_statistics(channel.backend).accepted, 1);
    while (backend_statistics(channel.backend).accepted < 2) {
        await_readable(handoff_backend_fd(channel.backend));
        assert_ok(handoff_backend_dispatch(channel.backend));
    }
    assert_ok(handoff_broker_dispatch(second));
    assert_int_equal(broker_statistics(second).connects, 1);
    handoff_broker_free(second);
}

/* Its own descriptors are there: only those of the channel are wanting. */
static void broker_without_a_descriptor_for_its_channel_tells_when_it_has_one(void **state)
{
    (void)state;
    handoff_broker *second;
    skip_under_valgrind("the kernel goes on installing descriptors beyond the limit");
    handoff_offer offer = offer_of(client[0]);
    assert_ok(handoff_broker_new(NULL, NULL, &second));
    int fd = handoff_broker_fd(second);
    assert_int_not_equal(fd, -1);
    rlim_t limit = allow_no_more_descriptors();
    const handoff_broker_backend backend = {.size = sizeof backend, .path = channel.path};
    assert_ok(handoff_broker_add(second, &backend));
    assert_ok(handoff_broker_dispatch(second));
    assert_status(handoff_broker_offer(second, &offer, NULL), HANDOFF_ERR_DESCRIPTOR_PRESSURE);
    allow_descriptors(limit);
    while (handoff_broker_room(second) == 0) {
        await_readable(fd);
        assert_ok(handoff_broker_dispatch(second));
        assert_ok(handoff_backend_dispatch(channel.backend));
    }
    assert_ok(handoff_broker_offer(second, &offer, NULL));
    adopt(&channel, arrival_of(&channel).id);
    handoff_broker_free(second);
}

/* The broker is told that the backend is short of something, and does not take it for a stranger. */
static void assert_told_of_want(handoff_broker *broker, int error)
{
    handoff_broker_backend_state state = HANDOFF_BROKER_BACKEND_STATE_INIT;
    assert_ok(handoff_broker_dispatch(broker));
    assert_ok(handoff_broker_get_backend_state(broker, 0, &state));
    assert_status(state.status, HANDOFF_ERR_BACKEND_UNAVAILABLE);
    assert_int_equal(state.system_errno, ENOSR);
    assert_non_null(strstr(state.message, "limit of its descriptors or memory"));
    assert_non_null(strstr(state.message, strerror(error)));
    handoff_offer offer = offer_of(client[0]);
    assert_status(handoff_broker_offer(broker, &offer, NULL), HANDOFF_ERR_BACKEND_UNAVAILABLE);
    assert_int_equal(errno, ENOSR);
    assert_last_error_has("limit of its descriptors or memory");
    handoff_backend_statistics statistics = backend_statistics(channel.backend);
    assert_true(statistics.system_errors > 0);
    assert_int_equal(statistics.system_errno, error);
    assert_int_equal(statistics.accepted, 1);
    assert_int_equal(statistics.refused + statistics.broken, 0);
}

static void broker_whose_claim_table_finds_no_descriptor_is_told_why(void **state)
{
    (void)state;
    handoff_broker *second;
    skip_under_valgrind("the kernel goes on installing descriptors beyond the limit");
    assert_ok(handoff_broker_new(channel.path, NULL, &second));
    assert_ok(handoff_broker_dispatch(second));
    int room = fcntl(client[0], F_DUPFD_CLOEXEC, 0);
    rlim_t limit = allow_no_more_descriptors();
    close(room);
    assert_ok(handoff_backend_dispatch(channel.backend));
    allow_descriptors(limit);
    assert_told_of_want(second, EMFILE);
    /* And accepted when there are descriptors again. */
    connect_broker(second, channel.backend);
    handoff_broker_free(second);
}

static void broker_whose_channel_cannot_be_watched_is_told_why(void **state)
{
    (void)state;
    handoff_broker *second;
    assert_ok(handoff_broker_new(channel.path, NULL, &second));
    assert_ok(handoff_broker_dispatch(second));
    refuse_system_call(SYS_epoll_ctl, ENOMEM);
    assert_ok(handoff_backend_dispatch(channel.backend));
    assert_told_of_want(second, ENOMEM);
    handoff_broker_free(second);
}

static void limit_descriptors(rlim_t most)
{
    struct rlimit limit;
    assert_int_equal(getrlimit(RLIMIT_NOFILE, &limit), 0);
    limit.rlim_cur = most;
    assert_int_equal(setrlimit(RLIMIT_NOFILE, &limit), 0);
}

/* ETOOMANYREFS, unix(7): more descriptors of one user in flight than RLIMIT_NOFILE. */
static void offers_beyond_the_users_descriptors_in_flight_fall_back_and_later_ones_do_not(
    void **state)
{
    (void)state;
    enum { LIMIT = 32, OFFERS = 2 * LIMIT };
    skip_under_valgrind("the kernel counts against the limit of before");
    pid_t child = start_child();
    if (child == 0) {
        struct channel own;
        uint64_t refused = 0;
        become_nobody();
        open_channel(&own, NULL, NULL);
        limit_descriptors(LIMIT);
        for (int i = 0; i < OFFERS; i++)
            offer_fd(&own, client[0]);
        handoff_verdict verdict = HANDOFF_VERDICT_INIT;
        for (; next_verdict(own.broker, &verdict); refused++) {
            assert_int_equal(verdict.outcome, HANDOFF_FALLBACK);
            assert_int_equal(verdict.reason, HANDOFF_REASON_DESCRIPTOR_PRESSURE);
            assert_false(verdict.may_have_reached_backend);
        }
        assert_in_range(refused, 1, OFFERS - 1);
        limit_descriptors(4 * OFFERS);
        for (uint64_t i = refused; i < OFFERS; i++)
            adopt(&own, arrival_of(&own).id);
        for (uint64_t i = refused; i < OFFERS; i++)
            assert_adopted(&own);
        limit_descriptors(LIMIT);
        offer_fd(&own, client[0]);
        adopt(&own, arrival_of(&own).id);
        assert_adopted(&own);
        close_channel(&own);
        _exit(0);
    }
    assert_child_succeeds(child);
}

/* The backend has no descriptors left for them, and would have rejected them if they were still on
   offer. */
static void offers_taken_back_at_close_are_not_counted_as_rejected(void **state)
{
    (void)state;
    skip_under_valgrind("the kernel goes on installing descriptors beyond the limit");
    enum { OFFERS = 20 };
    for (int i = 0; i < OFFERS; i++)
        offer_fd(&channel, client[0]);
    assert_ok(handoff_broker_close(channel.broker));
    rlim_t limit = allow_no_more_descriptors();
    assert_no_arrival(&channel);
    allow_descriptors(limit);
    handoff_backend_statistics found = backend_statistics(channel.backend);
    assert_int_equal(found.arrived, OFFERS);
    assert_int_equal(found.rejected, 0);
    assert_int_equal(found.taken_back, OFFERS);
}

static void arrival_that_is_rejected_too_late_counts_as_taken_back(void **state)
{
    (void)state;
    uint64_t id = offer_fd(&channel, client[0]);
    handoff_arrival arrival = arrival_of(&channel);
    assert_ok(handoff_broker_take_back(channel.broker, id));
    assert_ok(handoff_backend_reject(channel.backend, arrival.id, HANDOFF_REASON_REJECTED));
    handoff_backend_statistics found = backend_statistics(channel.backend);
    assert_int_equal(found.rejected, 0);
    assert_int_equal(found.taken_back, 1);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CHANNEL_TEST(connection_swapped_for_another_before_it_is_sent_is_refused),
        CHANNEL_TEST(connection_closed_before_it_is_sent_falls_back_and_no_other),
        CHANNEL_TEST(backend_short_of_descriptors_takes_what_it_can_and_says_so_of_the_rest),
        CHANNEL_TEST(broker_that_comes_while_there_are_no_descriptors_is_accepted_later),
        CHANNEL_TEST(broker_without_a_descriptor_for_its_channel_tells_when_it_has_one),
        CHANNEL_TEST(broker_whose_claim_table_finds_no_descriptor_is_told_why),
        CHANNEL_TEST(broker_whose_channel_cannot_be_watched_is_told_why),
        CHANNEL_TEST(offers_taken_back_at_close_are_not_counted_as_rejected),
        CHANNEL_TEST(arrival_that_is_rejected_too_late_counts_as_taken_back),
        CHANNEL_TEST(
            offers_beyond_the_users_descriptors_in_flight_fall_back_and_later_ones_do_not),
    };
    return RUN_TESTS(tests);
}
