/*
 * fixture.h: what most tests of a channel begin with: one with the default limits, on which offers
 * wait as long as a slow machine takes, and a connection to offer.
 */
#ifndef FIXTURE_H
#define FIXTURE_H

#include "channel.h"

#include <sys/socket.h>

static struct channel channel;
static int client[2];

static int open_both(void **state)
{
    const handoff_broker_options patient = {.size = sizeof patient,
                                            .timeout_ms = HANDOFF_NO_TIMEOUT};
    descriptors_before(state);
    open_channel(&channel, &patient, NULL);
    make_pair(SOCK_STREAM, client);
    return 0;
}

static int close_both(void **state)
{
    close_channel(&channel);
    close(client[0]);
    close(client[1]);
    return descriptors_after(state);
}

#define CHANNEL_TEST(function) cmocka_unit_test_setup_teardown(function, open_both, close_both)

#endif
