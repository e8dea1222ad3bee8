/*
 * start: how long it takes from nothing to the first handoff: the backend makes its handle and
 * listens, tells the broker's process so, and that makes its own, connects, and has the first offer
 * adopted. Both processes run already, and wait for each other through a pipe. The figure is the
 * median of REPETITIONS (201), in new processes each.
 */
#define _GNU_SOURCE
#include "common.h"
#include "need_handoff.h"

#include <sys/wait.h>
#include <unistd.h>

enum { REPETITIONS = 1001 };

static void wait_for_byte(int fd)
{
    char byte;
    need(read(fd, &byte, 1) == 1, "read");
}

static void send_byte(int fd)
{
    need(write(fd, "", 1) == 1, "write");
}

static void backend_run(const char *path, int go, int ready)
{
    handoff_backend *backend;
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    send_byte(ready);
    wait_for_byte(go);
    need_handoff(handoff_backend_listen(path, NULL, &backend), "handoff_backend_listen");
    send_byte(ready);
    need_handoff(handoff_backend_accept(backend, -1, &arrival), "handoff_backend_accept");
    close(arrival.fd);
    wait_for_byte(go); /* the verdict has been read */
    handoff_backend_free(backend);
}

static double run(int number_of_run, int connection)
{
    char path[64];
    int go[2], ready[2], status;
    handoff_broker *broker;
    handoff_offer offer = HANDOFF_OFFER_INIT;
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    snprintf(path, sizeof path, "@handoff-start-%d-%d", getpid(), number_of_run);
    need(pipe(go) == 0 && pipe(ready) == 0, "pipe");
    int child = make_child();
    if (child == 0) {
        backend_run(path, go[0], ready[1]);
        _exit(0);
    }
    wait_for_byte(ready[0]);
    offer.fd = connection;
    double start = now();
    send_byte(go[1]);
    wait_for_byte(ready[0]);
    need_handoff(handoff_broker_new(path, NULL, &broker), "handoff_broker_new");
    need_handoff(handoff_broker_offer_and_wait(broker, &offer, &verdict), "the first handoff");
    double time = now() - start;
    need(verdict.outcome == HANDOFF_ADOPTED, "the first handoff");
    send_byte(go[1]);
    need(waitpid(child, &status, 0) == child && status == 0, "backend");
    handoff_broker_free(broker);
    for (int i = 0; i < 2; i++) {
        close(go[i]);
        close(ready[i]);
    }
    return time;
}

int main(void)
{
    static double times[REPETITIONS];
    int pair[2], repetitions = number("REPETITIONS", 201);
    need(repetitions <= REPETITIONS, "REPETITIONS");
    connect_tcp(pair);
    run(-1, pair[1]); /* to warm up */
    for (int i = 0; i < repetitions; i++)
        times[i] = run(i, pair[1]);
    printf("%-44s %10s %10s\n", "microseconds from nothing to the first handoff", "p50", "p99");
    printf("%-46s %10.0f %10.0f\n", "", median(times, repetitions) / 1000,
           quantile(times, repetitions, 0.99) / 1000);
    return 0;
}
