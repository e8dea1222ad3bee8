/* What a dispatch does before it spins, and who does not: counted by its looks at the epoll set. */
#define _GNU_SOURCE
#include "fixture.h"

#include <sys/epoll.h>
#include <sys/syscall.h>

enum { SPIN_US = 10000 };

static int sends, sends_at_first_look, looks;

/* These take the place of the C library's. */
ssize_t sendmsg(int fd, const struct msghdr *message, int flags)
{
    sends++;
    return syscall(SYS_sendmsg, fd, message, flags);
}

int epoll_wait(int epoll, struct epoll_event *events, int room, int timeout)
{
    if (looks++ == 0)
        sends_at_first_look = sends;
    return (int)syscall(SYS_epoll_pwait, epoll, events, room, timeout, NULL, 0);
}

/* A broker with an offer in flight dispatches, and nothing comes. */
static void dispatch_with(uint32_t flags, uint32_t flags_of_offer)
{
    const handoff_broker_options options = {.size = sizeof options, .flags = flags,
                                            .spin_us = SPIN_US};
    handoff_offer offer = offer_of(client[0]);
    offer.flags = flags_of_offer;
    close_channel(&channel);
    open_channel(&channel, &options, NULL);
    assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    sends = looks = 0;
    assert_ok(handoff_broker_dispatch(channel.broker));
}

static void broker_sends_what_waits_before_it_spins(void **state)
{
    (void)state;
    dispatch_with(0, HANDOFF_OFFER_MORE);
    assert_int_equal(sends_at_first_look, 1);
    /* Oftener than one that does not spin, however slow the machine is. */
    assert_in_range(looks, 3, SPIN_US * 100);
}

static void shared_broker_does_not_spin(void **state)
{
    (void)state;
    dispatch_with(HANDOFF_BROKER_SHARED, 0);
    assert_in_range(looks, 0, 2);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        CHANNEL_TEST(broker_sends_what_waits_before_it_spins),
        CHANNEL_TEST(shared_broker_does_not_spin),
    };
    return RUN_TESTS(tests);
}
