/* place.h: a broker for a directory, for the tests of what it makes of the files in there. */
#ifndef PLACE_H
#define PLACE_H

#include "fleet.h"

#include <sys/stat.h>
#include <sys/un.h>

static struct fleet fleet;
static char place[80];

static inline int make_place(void **state)
{
    descriptors_before(state);
    make_fleet(&fleet);
    fleet.count = MOST_BACKENDS;
    snprintf(place, sizeof place, "%.63s/", fleet.directory);
    return 0;
}

static inline int remove_place(void **state)
{
    close_fleet(&fleet);
    return descriptors_after(state);
}

#define PLACE_TEST(function) cmocka_unit_test_setup_teardown(function, make_place, remove_place)

static inline size_t count_ready(void)
{
    handoff_broker_backend_state state = HANDOFF_BROKER_BACKEND_STATE_INIT;
    size_t ready = 0;
    for (size_t i = 0; handoff_broker_get_backend_state(fleet.broker, i, &state) == HANDOFF_OK; i++)
        ready += state.state == HANDOFF_STATE_READY;
    return ready;
}

/* Waits until there are so many backends, all of them ready. */
static inline void await_backends(size_t count)
{
    until(&fleet, count_ready() == count && count_backends(fleet.broker) == count);
}

static inline void open_broker(void)
{
    assert_ok(handoff_broker_new(place, NULL, &fleet.broker));
}

static inline void bind_by_hand(const char *name, int type)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%.63s/%.30s", fleet.directory, name);
    int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    close(fd);
}

#endif
