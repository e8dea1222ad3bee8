/* A broker for a directory in which much is, or much happens. */
#define _GNU_SOURCE
#include "place.h"

#include <errno.h>
#include <fcntl.h>

enum { MOST = 1024 };

/* Nobody listens at these, as when those who did were killed. */
static void leave_sockets_behind_in(const char *directory, int from, int to)
{
    char path[120];
    for (int i = from; i < to; i++) {
        snprintf(path, sizeof path, "%sdead-%d", directory, i);
        assert_int_equal(mknod(path, S_IFSOCK | 0600, 0), 0);
    }
}

static void leave_sockets_behind(int from, int to)
{
    leave_sockets_behind_in(place, from, to);
}

static void backends_have_the_places_of_sockets_at_which_nobody_listens(void **state)
{
    (void)state;
    handoff_broker_backend_state found;
    leave_sockets_behind(0, MOST - 1);
    listen_at(&fleet, 0, NULL);
    leave_sockets_behind(MOST - 1, MOST + 100);
    open_broker();
    until(&fleet, count_ready() == 1);
    listen_at(&fleet, 1, NULL);
    until(&fleet, count_ready() == 2);
    until(&fleet, count_backends(fleet.broker) == MOST + 1); /* and the directory */
    assert_true(find_state(fleet.broker, place, &found));
    assert_int_equal(found.system_errno, ENOSPC);
    assert_status(found.status, HANDOFF_ERR_FULL);
    assert_non_null(strstr(found.message, "a broker can have 1024 backends"));
    offer_client(&fleet);
    offer_client(&fleet);
    assert_int_equal(arrivals_at(&fleet, 0, NULL), 1);
    assert_int_equal(arrivals_at(&fleet, 1, NULL), 1);
}

static void files_that_are_no_sockets_are_named_as_what_is_in_the_way(void **state)
{
    (void)state;
    enum { FILES = 65536 };
    char path[120];
    for (int i = 0; i <= FILES; i++) {
        snprintf(path, sizeof path, "%sfile-%d", place, i);
        int fd = open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600);
        assert_true(fd >= 0);
        close(fd);
    }
    open_broker();
    handoff_offer offer = offer_of(fleet.client[0]);
    assert_status(handoff_broker_offer(fleet.broker, &offer, NULL),
                  HANDOFF_ERR_BACKEND_UNAVAILABLE);
    assert_non_null(strstr(handoff_last_error(), "reads 65,536 names, whatever they are"));
}

/* Where there is no place for all, the sockets of one directory give way to those of the other. */
static void backends_of_two_directories_have_the_places_of_sockets_at_which_nobody_listens(void **state)
{
    (void)state;
    enum { SOCKETS = 900, READ_AGAIN_MS = 10000 };
    char other[100], path[120];
    handoff_broker_backend first = backend_at("/absent"), backend = backend_at(other);
    snprintf(other, sizeof other, "%sother/", place);
    assert_int_equal(mkdir(other, 0700), 0);
    leave_sockets_behind(0, SOCKETS);
    leave_sockets_behind_in(other, 0, SOCKETS);
    /* The last ones that are looked at. */
    snprintf(path, sizeof path, "%slast", place);
    assert_ok(handoff_backend_listen(path, NULL, &fleet.backends[0]));
    snprintf(path, sizeof path, "%slast", other);
    assert_ok(handoff_backend_listen(path, NULL, &fleet.backends[1]));
    open_broker();
    /* The second directory is the first to lack a place, and takes one of the other's. */
    assert_ok(handoff_broker_add(fleet.broker, &first));
    assert_ok(handoff_broker_add(fleet.broker, &backend));
    uint64_t start = now_ns();
    until(&fleet, count_ready() == 2);
    assert_true(ms_since(start) < READ_AGAIN_MS);
    handoff_broker_free(fleet.broker);
    fleet.broker = NULL;
    free_backend(&fleet, 1);
    remove_directory(other);
}

/* However many were left behind, the broker's loop goes on meanwhile. */
static void sockets_in_a_directory_are_looked_at_a_few_at_a_time(void **state)
{
    (void)state;
    leave_sockets_behind(0, 4 * MOST);
    listen_at(&fleet, 0, NULL);
    open_broker();
    assert_int_not_equal(handoff_broker_fd(fleet.broker), -1);
    assert_in_range(count_backends(fleet.broker), 1, MOST / 8);
    assert_ok(handoff_broker_dispatch(fleet.broker));
    assert_in_range(count_backends(fleet.broker), 1, MOST / 8);
    until(&fleet, count_ready() == 1);
}

static void wait_for_a_backend_begins_before_all_sockets_are_looked_at(void **state)
{
    (void)state;
    enum { TIMEOUT_MS = 300 };
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    handoff_offer offer = offer_of(fleet.client[0]);
    handoff_backend *last;
    char path[100];
    offer.timeout_ms = TIMEOUT_MS;
    leave_sockets_behind(0, 200);
    snprintf(path, sizeof path, "%slast", place);
    assert_ok(handoff_backend_listen(path, NULL, &last));
    open_broker();
    uint64_t start = now_ns();
    /* The broker finds it, and it says nothing. */
    assert_status(handoff_broker_offer_and_wait(fleet.broker, &offer, &verdict),
                  HANDOFF_ERR_BACKEND_UNAVAILABLE);
    assert_true(ms_since(start) >= TIMEOUT_MS);
    handoff_backend_free(last);
}

static void socket_that_is_removed_before_it_is_looked_at_stays_away(void **state)
{
    (void)state;
    enum { SOCKETS = 200 };
    char last[100];
    handoff_broker_backend_state found;
    leave_sockets_behind(0, SOCKETS);
    snprintf(last, sizeof last, "%sdead-99", place);
    open_broker();
    assert_int_not_equal(handoff_broker_fd(fleet.broker), -1);
    assert_false(find_state(fleet.broker, last, &found));
    assert_ok(handoff_broker_remove(fleet.broker, last));
    until(&fleet, count_backends(fleet.broker) == SOCKETS - 1);
    for (int i = 0; i < 20; i++)
        turn(&fleet);
    assert_false(find_state(fleet.broker, last, &found));
}

static void backend_for_which_there_was_no_place_gets_one_when_another_goes(void **state)
{
    (void)state;
    char first[100], path[100];
    handoff_broker_backend_state found;
    /* Of a socket that is in use, though by no backend. */
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(first, sizeof first, "%.80sforeign", place);
    memcpy(address.sun_path, first, sizeof first);
    int foreign = socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(foreign, (struct sockaddr *)&address, sizeof address), 0);
    for (int i = 1; i < MOST; i++) {
        snprintf(path, sizeof path, "%.80sforeign-%d", place, i);
        assert_int_equal(link(first, path), 0);
    }
    open_broker();
    until(&fleet, count_backends(fleet.broker) == MOST);
    listen_at(&fleet, 0, NULL);
    until(&fleet, find_state(fleet.broker, place, &found));
    assert_int_equal(found.system_errno, ENOSPC);
    assert_false(find_state(fleet.broker, fleet.paths[0], &found));
    assert_true(found.next_ms > 1000);
    assert_int_equal(unlink(path), 0);
    until(&fleet, state_of(fleet.broker, place).next_ms <= 1000);
    until(&fleet, count_ready() == 1);
    until(&fleet, !find_state(fleet.broker, place, &found));
    close(foreign);
}

/* Each turn changes something before the directory, in which something was left out, is read. */
static void directory_that_changes_all_the_time_is_read_again(void **state)
{
    (void)state;
    char from[160], to[240], path[100];
    handoff_broker_backend_state found;
    leave_sockets_behind(0, 200);
    snprintf(from, sizeof from, "%sdead-0", place);
    snprintf(to, sizeof to, "%s%0120d", place, 0);
    snprintf(path, sizeof path, "%ssocket", place);
    assert_int_equal(rename(from, to), 0);
    open_broker();
    until(&fleet, find_state(fleet.broker, place, &found));
    assert_int_equal(found.system_errno, ENAMETOOLONG);
    assert_int_equal(unlink(to), 0);
    for (uint64_t start = now_ns(); find_state(fleet.broker, place, &found);) {
        assert_true(ms_since(start) < PATIENCE_MS);
        bind_by_hand("socket", SOCK_SEQPACKET);
        assert_ok(handoff_broker_dispatch(fleet.broker));
        assert_int_equal(unlink(path), 0);
        turn(&fleet);
    }
}

/* More changes than inotify(7) keeps, or than are read at once. */
static void many_sockets_that_come_and_go_are_followed(void **state)
{
    (void)state;
    enum { ROUNDS = 300 };
    listen_at(&fleet, 0, NULL);
    open_broker();
    await_backends(1);
    for (int i = 0; i < ROUNDS; i++) {
        listen_at(&fleet, 1 + i % 7, NULL);
        if (i % 3 == 0)
            assert_ok(handoff_broker_dispatch(fleet.broker));
        free_backend(&fleet, 1 + i % 7);
    }
    listen_at(&fleet, 5, NULL);
    await_backends(2);
}

static void name_that_is_too_long_is_an_error_until_it_goes(void **state)
{
    (void)state;
    char from[160], to[240];
    handoff_broker_backend_state found;
    snprintf(from, sizeof from, "%sshort", place);
    snprintf(to, sizeof to, "%s%0120d", place, 0);
    listen_at(&fleet, 0, NULL);
    open_broker();
    await_backends(1);
    bind_by_hand("short", SOCK_SEQPACKET);
    assert_int_equal(rename(from, to), 0);
    until(&fleet, find_state(fleet.broker, place, &found));
    assert_int_equal(found.system_errno, ENAMETOOLONG);
    assert_non_null(strstr(found.message, to));
    assert_non_null(strstr(found.message, "left out, because its path is longer than 107 bytes"));
    free_backend(&fleet, 0);
    until(&fleet, count_backends(fleet.broker) == 1);
    handoff_offer offer = offer_of(fleet.client[0]);
    assert_status(handoff_broker_offer(fleet.broker, &offer, NULL), HANDOFF_ERR_BACKEND_UNAVAILABLE);
    assert_non_null(strstr(handoff_last_error(), "a socket in the directory is left out"));
    assert_int_equal(unlink(to), 0);
    await_backends(0);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        PLACE_TEST(backends_have_the_places_of_sockets_at_which_nobody_listens),
        PLACE_TEST(files_that_are_no_sockets_are_named_as_what_is_in_the_way),
        PLACE_TEST(backends_of_two_directories_have_the_places_of_sockets_at_which_nobody_listens),
        PLACE_TEST(sockets_in_a_directory_are_looked_at_a_few_at_a_time),
        PLACE_TEST(wait_for_a_backend_begins_before_all_sockets_are_looked_at),
        PLACE_TEST(socket_that_is_removed_before_it_is_looked_at_stays_away),
        PLACE_TEST(backend_for_which_there_was_no_place_gets_one_when_another_goes),
        PLACE_TEST(directory_that_changes_all_the_time_is_read_again),
        PLACE_TEST(many_sockets_that_come_and_go_are_followed),
        PLACE_TEST(name_that_is_too_long_is_an_error_until_it_goes),
    };
    return RUN_TESTS(tests);
}
