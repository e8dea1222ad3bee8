/*
 * scale: what one handoff costs, offer to verdict, while others are in flight and on how many
 * channels. It should always be the same.
 *
 * One process plays both ends in turn, so nothing waits for a scheduler. With N in flight, N - 1
 * offers are held by the backend, which has looked at them but not adopted them, and the last one
 * goes to and fro. With N channels the handoffs go through each in turn, or all through one while
 * the others are idle. In each repetition every row runs, in turns first; ratios are within a
 * repetition. REPETITIONS (11) and HANDOFFS (3000) in each come from the environment.
 */
#define _GNU_SOURCE
#include "common.h"
#include "need_handoff.h"

#include <stdio.h>
#include <stdlib.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

enum { IN_FLIGHT = 4096, CHANNELS = 1000, REPETITIONS = 101 };

static const struct row {
    const char *name;
    int in_flight, channels, used;
} rows[] = {
    {"1 in flight", 1, 1, 1},
    {"100 in flight", 100, 1, 1},
    {"4,000 in flight", 4000, 1, 1},
    {"100 channels, one used", 1, 100, 1},
    {"1,000 channels, one used", 1, 1000, 1},
    {"100 channels in turn", 1, 100, 100},
    {"1,000 channels in turn", 1, 1000, 1000},
};
enum { ROWS = sizeof rows / sizeof rows[0] };

static int connection;
static handoff_backend *backend;
static handoff_broker *brokers[CHANNELS];

static handoff_status offer(handoff_broker *broker)
{
    handoff_offer offer = HANDOFF_OFFER_INIT;
    offer.fd = connection;
    offer.timeout_ms = 60000;
    return handoff_broker_offer(broker, &offer, NULL);
}

/* Connects a broker, whose welcome and tokens have come when it can offer. */
static handoff_broker *open_broker(const char *path, size_t max_in_flight)
{
    handoff_broker *broker;
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    handoff_broker_statistics statistics = HANDOFF_BROKER_STATISTICS_INIT;
    options.max_in_flight = max_in_flight;
    need_handoff(handoff_broker_new(path, &options, &broker), "handoff_broker_new");
    while (statistics.connects == 0) {
        need_handoff(handoff_broker_dispatch(broker), "handoff_broker_dispatch");
        need_handoff(handoff_backend_dispatch(backend), "handoff_backend_dispatch");
        need_handoff(handoff_broker_dispatch(broker), "handoff_broker_dispatch");
        need_handoff(handoff_broker_get_statistics(broker, &statistics), "statistics");
    }
    return broker;
}

static void take(handoff_arrival *arrival)
{
    need_handoff(handoff_backend_dispatch(backend), "handoff_backend_dispatch");
    need(took(handoff_backend_next(backend, arrival), "handoff_backend_next"), "no arrival");
}

static void hand_over(handoff_broker *broker)
{
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    int fd;
    need_handoff(offer(broker), "handoff_broker_offer");
    take(&arrival);
    need_handoff(handoff_backend_adopt(backend, arrival.id, &fd), "handoff_backend_adopt");
    close(fd);
    need(!took(handoff_backend_next(backend, &arrival), "handoff_backend_next"), "an arrival");
    need_handoff(handoff_broker_dispatch(broker), "handoff_broker_dispatch");
    need(took(handoff_broker_next(broker, &verdict), "handoff_broker_next"), "no verdict");
    need(verdict.outcome == HANDOFF_ADOPTED, "a fallback");
}

/* Nanoseconds for each handoff. */
static double run(const struct row *row, int handoffs)
{
    char path[64];
    handoff_arrival held = HANDOFF_ARRIVAL_INIT;
    handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
    options.max_channels = CHANNELS;
    options.max_in_flight = row->in_flight > 1 ? IN_FLIGHT : 0; /* 0: the default */
    snprintf(path, sizeof path, "@handoff-bench-%d", getpid());
    need_handoff(handoff_backend_listen(path, &options, &backend), "handoff_backend_listen");
    for (int i = 0; i < row->channels; i++)
        brokers[i] = open_broker(path, options.max_in_flight);
    for (int i = 1; i < row->in_flight; i++) {
        need_handoff(offer(brokers[0]), "handoff_broker_offer");
        take(&held);
    }
    for (int i = 0; i < row->used; i++) /* each once, to warm up */
        hand_over(brokers[i]);
    double start = now();
    for (int i = 0; i < handoffs; i++)
        hand_over(brokers[i % row->used]);
    double time = now() - start;
    for (int i = 0; i < row->channels; i++)
        handoff_broker_free(brokers[i]);
    handoff_backend_free(backend);
    return time / handoffs;
}

int main(void)
{
    static double values[ROWS][REPETITIONS], ratios[ROWS][REPETITIONS];
    int pair[2], repetitions = number("REPETITIONS", 11), handoffs = number("HANDOFFS", 3000);
    need(repetitions <= REPETITIONS, "REPETITIONS");
    struct rlimit limit;
    need(getrlimit(RLIMIT_NOFILE, &limit) == 0, "getrlimit");
    limit.rlim_cur = limit.rlim_max;
    need(setrlimit(RLIMIT_NOFILE, &limit) == 0, "setrlimit");
    connect_tcp(pair);
    connection = pair[1];
    for (int repetition = -1; repetition < repetitions; repetition++) { /* -1 to warm up */
        double times[ROWS];
        for (int turn = 0; turn < (int)ROWS; turn++) {
            int row = (turn + repetition + 1) % ROWS;
            times[row] = run(&rows[row], handoffs);
        }
        for (int row = 0; row < (int)ROWS && repetition >= 0; row++) {
            values[row][repetition] = times[row];
            ratios[row][repetition] = times[row] / times[0];
        }
    }
    printf("%-34s %10s %10s\n", "nanoseconds from offer to verdict", "", "ratio");
    for (int row = 0; row < (int)ROWS; row++)
        printf("%-34s %10.0f %10.3f\n", rows[row].name, median(values[row], repetitions),
               median(ratios[row], repetitions));
    return 0;
}
