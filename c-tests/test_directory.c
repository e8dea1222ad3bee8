/* A broker for a directory: its sockets are its backends, as they come and go. */
#define _GNU_SOURCE
#include "place.h"
#include "libc.h"

#include <errno.h>
#include <fcntl.h>

static void sockets_that_are_there_and_those_that_come_are_backends(void **state)
{
    (void)state;
    listen_at(&fleet, 0, NULL);
    listen_at(&fleet, 1, NULL);
    open_broker();
    await_backends(2);
    listen_at(&fleet, 2, NULL);
    await_backends(3);
    assert_int_equal(state_of(fleet.broker, fleet.paths[2]).weight, 1);
    for (int i = 0; i < 6; i++)
        offer_client(&fleet);
    for (int i = 0; i < 3; i++)
        assert_int_equal(arrivals_at(&fleet, i, NULL), 2);
}

static void names_in_the_state_are_in_order(void **state)
{
    (void)state;
    handoff_broker_backend_state found = HANDOFF_BROKER_BACKEND_STATE_INIT;
    for (int i = 4; i >= 0; i--)
        listen_at(&fleet, i, NULL);
    open_broker();
    await_backends(5);
    for (size_t i = 0; i < 5; i++) {
        assert_ok(handoff_broker_get_backend_state(fleet.broker, i, &found));
        assert_string_equal(found.path, fleet.paths[i]);
    }
}

static void socket_that_goes_is_no_backend_any_more(void **state)
{
    (void)state;
    uint64_t id = 0;
    listen_at(&fleet, 0, NULL);
    listen_at(&fleet, 1, NULL);
    open_broker();
    await_backends(2);
    free_backend(&fleet, 0);
    await_backends(1);
    /* Its file goes, and it lives: what is in flight ends as it does. */
    offer_client(&fleet);
    assert_int_equal(find_arrival(&fleet, &id), 1);
    assert_int_equal(unlink(fleet.paths[1]), 0);
    until(&fleet, state_of(fleet.broker, fleet.paths[1]).state == HANDOFF_STATE_DRAINING);
    adopt_at(&fleet, 1, id);
    assert_int_equal(await_verdict(&fleet).outcome, HANDOFF_ADOPTED);
    await_backends(0);
    until(&fleet, backend_statistics(fleet.backends[1]).channels == 0);
}

static void socket_that_comes_again_is_a_backend_again(void **state)
{
    (void)state;
    open_broker();
    for (int round = 0; round < 20; round++) {
        listen_at(&fleet, round % 2, NULL);
        await_backends(1);
        free_backend(&fleet, round % 2);
        if (round % 4 == 3)
            await_backends(0);
    }
}

static void make_file(const char *name)
{
    char path[160];
    snprintf(path, sizeof path, "%s%s", place, name);
    close(open(path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
}

static void only_sockets_whose_names_begin_with_no_dot_are_backends(void **state)
{
    (void)state;
    char path[160], link[160];
    make_file("a file");
    bind_by_hand(".hidden", SOCK_SEQPACKET);
    listen_at(&fleet, 0, NULL);
    open_broker();
    await_backends(1);
    make_file("another file");
    bind_by_hand(".hidden.sock", SOCK_SEQPACKET);
    snprintf(link, sizeof link, "%slink", place);
    assert_int_equal(symlink(fleet.paths[0], link), 0);
    snprintf(path, sizeof path, "%spipe", place);
    assert_int_equal(mkfifo(path, 0600), 0);
    listen_at(&fleet, 1, NULL);
    await_backends(2);
}

/* It is listed, and says why nothing is offered to it. */
static void socket_that_is_no_handoff_socket_is_down(void **state)
{
    (void)state;
    bind_by_hand("7.sock", SOCK_STREAM);
    listen_at(&fleet, 0, NULL);
    open_broker();
    until(&fleet, count_ready() == 1);
    handoff_broker_backend_state found = state_of(fleet.broker, fleet.paths[7]);
    assert_int_equal(found.state, HANDOFF_STATE_DOWN);
    assert_true(found.status < 0);
    offer_client(&fleet);
    assert_int_equal(arrivals_at(&fleet, 0, NULL), 1);
}

static void socket_that_moves_into_the_directory_is_a_backend(void **state)
{
    (void)state;
    char elsewhere[64], path[80];
    handoff_backend *backend;
    make_directory(elsewhere);
    snprintf(path, sizeof path, "%.63s/socket", elsewhere);
    open_broker();
    assert_ok(handoff_backend_listen(path, NULL, &backend));
    assert_int_equal(rename(path, fleet.paths[3]), 0);
    fleet.backends[3] = backend;
    await_backends(1);
    assert_int_equal(rename(fleet.paths[3], fleet.paths[4]), 0);
    until(&fleet, count_backends(fleet.broker) == 1 && is_in_state(&fleet, 4,
                                                                   HANDOFF_STATE_READY));
    assert_int_equal(rename(fleet.paths[4], path), 0);
    await_backends(0);
    assert_int_equal(unlink(path), 0);
    remove_directory(elsewhere);
}

static void directory_may_come_later_and_go_and_come_again(void **state)
{
    (void)state;
    char inner[100], path[140];
    handoff_offer offer = offer_of(fleet.client[0]);
    snprintf(inner, sizeof inner, "%sinner/", place);
    snprintf(path, sizeof path, "%ssocket", inner);
    assert_ok(handoff_broker_new(inner, NULL, &fleet.broker));
    assert_status(handoff_broker_offer(fleet.broker, &offer, NULL),
                  HANDOFF_ERR_BACKEND_UNAVAILABLE);
    assert_last_error_has(inner);
    assert_last_error_has("No such file or directory");
    for (int round = 0; round < 2; round++) {
        assert_int_equal(mkdir(inner, 0700), 0);
        assert_ok(handoff_backend_listen(path, NULL, &fleet.backends[0]));
        await_backends(1);
        free_backend(&fleet, 0);
        assert_int_equal(rmdir(inner), 0);
        /* It has a state of its own while it cannot be read. */
        handoff_broker_backend_state found;
        until(&fleet, find_state(fleet.broker, inner, &found));
        assert_int_equal(count_backends(fleet.broker), 1);
        assert_int_equal(found.state, HANDOFF_STATE_DOWN);
        assert_status(found.status, HANDOFF_ERR_BACKEND_UNAVAILABLE);
        assert_int_equal(found.system_errno, ENOENT);
        assert_in_range(found.next_ms, 0, 1000);
    }
}

static void directory_that_is_replaced_is_followed(void **state)
{
    (void)state;
    char inner[100], old[100], path[140];
    snprintf(inner, sizeof inner, "%sinner/", place);
    snprintf(old, sizeof old, "%sold", place);
    snprintf(path, sizeof path, "%sa", inner);
    assert_int_equal(mkdir(inner, 0700), 0);
    assert_ok(handoff_backend_listen(path, NULL, &fleet.backends[0]));
    assert_ok(handoff_broker_new(inner, NULL, &fleet.broker));
    await_backends(1);
    inner[strlen(inner) - 1] = '\0';
    assert_int_equal(rename(inner, old), 0);
    assert_int_equal(mkdir(inner, 0700), 0);
    /* Its sockets may have the same names. */
    assert_ok(handoff_backend_listen(path, NULL, &fleet.backends[1]));
    until(&fleet, backend_statistics(fleet.backends[1]).channels == 1);
    until(&fleet, backend_statistics(fleet.backends[0]).channels == 0);
    await_backends(1);
    snprintf(path, sizeof path, "%s/a", old);
    assert_int_equal(unlink(path), 0);
    free_backend(&fleet, 1);
    assert_int_equal(rmdir(old), 0);
    assert_int_equal(rmdir(inner), 0);
}

static void directory_without_permission_says_so(void **state)
{
    (void)state;
    need_root();
    listen_at(&fleet, 0, NULL);
    pid_t child = start_child();
    if (child == 0) {
        handoff_broker *broker;
        handoff_offer offer = offer_of(fleet.client[0]);
        become_nobody();
        child_assert(handoff_broker_new(place, NULL, &broker) == HANDOFF_OK);
        child_assert(handoff_broker_offer(broker, &offer, NULL) == HANDOFF_ERR_PERMISSION_DENIED);
        child_assert(strstr(handoff_last_error(), place) != NULL);
        child_assert(strstr(handoff_last_error(), " may not list the directory, ") != NULL);
        child_assert(strstr(handoff_last_error(), "Permission denied") != NULL);
        handoff_broker_free(broker);
        _exit(0);
    }
    assert_child_succeeds(child);
    open_broker();
    await_backends(1);
}

static void directory_is_removed_with_its_backends_and_may_be_added_again(void **state)
{
    (void)state;
    handoff_broker_backend backend = backend_at(place);
    listen_at(&fleet, 0, NULL);
    listen_at(&fleet, 1, NULL);
    open_broker();
    for (int round = 0; round < 3; round++) {
        await_backends(2);
        assert_ok(handoff_broker_remove(fleet.broker, place));
        assert_int_equal(count_backends(fleet.broker), 0);
        assert_status(handoff_broker_remove(fleet.broker, place), HANDOFF_NOTHING);
        until(&fleet, backend_statistics(fleet.backends[0]).channels == 0);
        assert_ok(handoff_broker_add(fleet.broker, &backend));
    }
    await_backends(2);
    /* What comes meanwhile is found, too. */
    assert_ok(handoff_broker_remove(fleet.broker, place));
    listen_at(&fleet, 2, NULL);
    assert_ok(handoff_broker_add(fleet.broker, &backend));
    await_backends(3);
    listen_at(&fleet, 3, NULL);
    await_backends(4);
}

static void directories_that_were_removed_take_no_memory(void **state)
{
    (void)state;
    char path[160];
    handoff_broker_backend backend = backend_at(path);
    size_t before = 0;
    open_broker();
    assert_int_not_equal(handoff_broker_fd(fleet.broker), -1);
    for (int i = 0; i < 10000; i++) {
        snprintf(path, sizeof path, "%s%d/", place, i);
        assert_ok(handoff_broker_add(fleet.broker, &backend));
        assert_ok(handoff_broker_remove(fleet.broker, path));
        if (i == 10)
            before = bytes_allocated();
    }
    assert_in_range(bytes_allocated(), 0, before + 10000);
}

static void settings_of_a_directory_are_those_of_its_backends(void **state)
{
    (void)state;
    handoff_broker_backend backend = backend_at(place);
    listen_at(&fleet, 0, NULL);
    assert_ok(handoff_broker_new(NULL, NULL, &fleet.broker));
    backend.weight = 5;
    backend.flags = HANDOFF_BACKEND_BACKUP;
    backend.max_in_flight = 7;
    assert_ok(handoff_broker_add(fleet.broker, &backend));
    await_backends(1);
    assert_int_equal(state_of(fleet.broker, fleet.paths[0]).weight, 5);
    assert_int_equal(state_of(fleet.broker, fleet.paths[0]).flags, HANDOFF_BACKEND_BACKUP);
    assert_int_equal(state_of(fleet.broker, fleet.paths[0]).room, 7);
    backend.weight = 9;
    backend.flags = 0;
    assert_ok(handoff_broker_add(fleet.broker, &backend));
    listen_at(&fleet, 1, NULL);
    await_backends(2);
    for (int i = 0; i < 2; i++) {
        assert_int_equal(state_of(fleet.broker, fleet.paths[i]).weight, 9);
        assert_int_equal(state_of(fleet.broker, fleet.paths[i]).flags, 0);
    }
}

/* It was added by its own name as well: that stands, whatever happens in the directory. */
static void backend_that_was_added_by_its_path_stays_when_its_file_goes(void **state)
{
    (void)state;
    handoff_broker_backend backend = backend_at(fleet.paths[0]);
    backend.weight = 5;
    listen_at(&fleet, 0, NULL);
    listen_at(&fleet, 1, NULL);
    open_broker();
    await_backends(2);
    assert_ok(handoff_broker_add(fleet.broker, &backend));
    free_backend(&fleet, 0);
    free_backend(&fleet, 1);
    until(&fleet, count_backends(fleet.broker) == 1);
    until(&fleet, is_in_state(&fleet, 0, HANDOFF_STATE_DOWN));
    assert_int_equal(state_of(fleet.broker, fleet.paths[0]).weight, 5);
    listen_at(&fleet, 0, NULL);
    until(&fleet, is_in_state(&fleet, 0, HANDOFF_STATE_READY));
    assert_int_equal(state_of(fleet.broker, fleet.paths[0]).weight, 5);
    assert_ok(handoff_broker_remove(fleet.broker, place));
    assert_int_equal(count_backends(fleet.broker), 1);
}

static void backend_that_is_removed_stays_away_until_its_file_comes_anew(void **state)
{
    (void)state;
    handoff_broker_backend own = backend_at(fleet.paths[0]), all = backend_at(place);
    listen_at(&fleet, 0, NULL);
    listen_at(&fleet, 1, NULL);
    open_broker();
    for (all.weight = 2; all.weight < 5; all.weight++) {
        await_backends(2);
        assert_ok(handoff_broker_remove(fleet.broker, fleet.paths[0]));
        await_backends(1);
        /* The directory is read again. */
        assert_ok(handoff_broker_add(fleet.broker, &all));
        until(&fleet, state_of(fleet.broker, fleet.paths[1]).weight == all.weight);
        assert_int_equal(count_backends(fleet.broker), 1);
        free_backend(&fleet, 0);
        listen_at(&fleet, 0, NULL);
    }
    await_backends(2);
    /* Or it is added by its own name. */
    assert_ok(handoff_broker_remove(fleet.broker, fleet.paths[0]));
    assert_ok(handoff_broker_add(fleet.broker, &own));
    await_backends(2);
    assert_ok(handoff_broker_remove(fleet.broker, fleet.paths[0]));
    await_backends(1);
    assert_ok(handoff_broker_remove(fleet.broker, place));
    assert_ok(handoff_broker_add(fleet.broker, &all));
    await_backends(2);
}

static void backend_that_is_removed_with_offers_in_flight_stays_away(void **state)
{
    (void)state;
    uint64_t id = 0;
    handoff_broker_backend all = backend_at(place);
    listen_at(&fleet, 0, NULL);
    open_broker();
    await_backends(1);
    offer_client(&fleet);
    assert_int_equal(find_arrival(&fleet, &id), 0);
    assert_ok(handoff_broker_remove(fleet.broker, fleet.paths[0]));
    assert_ok(handoff_broker_add(fleet.broker, &all));
    until(&fleet, is_in_state(&fleet, 0, HANDOFF_STATE_DRAINING));
    adopt_at(&fleet, 0, id);
    assert_int_equal(await_verdict(&fleet).outcome, HANDOFF_ADOPTED);
    await_backends(0);
}

/* What has happened in the directory is still to be told when the successor is removed. */
static void successor_that_is_removed_at_once_stays_away(void **state)
{
    (void)state;
    listen_at(&fleet, 0, NULL);
    listen_at(&fleet, 1, NULL);
    open_broker();
    await_backends(2);
    free_backend(&fleet, 0);
    listen_at(&fleet, 0, NULL);
    assert_ok(handoff_broker_remove(fleet.broker, fleet.paths[0]));
    assert_int_equal(count_backends(fleet.broker), 1);
    free_backend(&fleet, 1);
    await_backends(0);
}

/* Whether it was added by that before the directory had it, or after. */
static void backend_with_its_own_name_stays_away_too_when_it_is_removed(void **state)
{
    (void)state;
    handoff_broker_backend own = backend_at(fleet.paths[0]), all = backend_at(place);
    own.weight = 5;
    listen_at(&fleet, 0, NULL);
    listen_at(&fleet, 1, NULL);
    open_broker();
    await_backends(2);
    assert_ok(handoff_broker_add(fleet.broker, &own));
    assert_int_equal(state_of(fleet.broker, fleet.paths[0]).weight, 5);
    assert_ok(handoff_broker_remove(fleet.broker, fleet.paths[0]));
    await_backends(1);
    assert_ok(handoff_broker_remove(fleet.broker, place));
    assert_int_equal(count_backends(fleet.broker), 0);
    assert_ok(handoff_broker_add(fleet.broker, &own));
    assert_ok(handoff_broker_add(fleet.broker, &all));
    await_backends(2);
    assert_ok(handoff_broker_remove(fleet.broker, fleet.paths[0]));
    assert_ok(handoff_broker_add(fleet.broker, &all));
    await_backends(1);
    free_backend(&fleet, 0);
    listen_at(&fleet, 0, NULL);
    await_backends(2);
    assert_int_equal(state_of(fleet.broker, fleet.paths[0]).weight, 1);
}

/* It is removed while an offer is in flight there, and its successor listens before that ends. */
static void successor_of_a_backend_with_its_own_name_is_the_directorys(void **state)
{
    (void)state;
    uint64_t id = 0;
    handoff_broker_backend own = backend_at(fleet.paths[0]);
    own.weight = 5;
    listen_at(&fleet, 0, NULL);
    open_broker();
    await_backends(1);
    assert_ok(handoff_broker_add(fleet.broker, &own));
    offer_client(&fleet);
    assert_int_equal(find_arrival(&fleet, &id), 0);
    assert_ok(handoff_broker_remove(fleet.broker, fleet.paths[0]));
    assert_true(is_in_state(&fleet, 0, HANDOFF_STATE_DRAINING));
    assert_ok(handoff_backend_drain(fleet.backends[0]));
    handoff_backend *before = fleet.backends[0];
    listen_at(&fleet, 0, NULL);
    until(&fleet, count_ready() == 1);
    int fd = -1;
    assert_ok(handoff_backend_adopt(before, id, &fd));
    close(fd);
    handoff_backend_free(before);
    assert_int_equal(await_verdict(&fleet).outcome, HANDOFF_ADOPTED);
    await_backends(1);
    assert_int_equal(state_of(fleet.broker, fleet.paths[0]).weight, 1);
}

/* Others see the file's name only, and the directory is read before they are told of a change. */
static void socket_that_is_replaced_is_followed_although_the_directory_is_read_anew(void **state)
{
    (void)state;
    char hidden[100];
    handoff_broker_backend all = backend_at(place);
    snprintf(hidden, sizeof hidden, "%s.new", place);
    listen_at(&fleet, 0, NULL);
    open_broker();
    await_backends(1);
    assert_ok(handoff_backend_listen(hidden, NULL, &fleet.backends[1]));
    assert_int_equal(rename(hidden, fleet.paths[0]), 0);
    assert_ok(handoff_broker_add(fleet.broker, &all));
    until(&fleet, backend_statistics(fleet.backends[1]).channels == 1);
    until(&fleet, backend_statistics(fleet.backends[0]).channels == 0);
    await_backends(1);
}

static void two_paths_to_a_directory_are_two_directories(void **state)
{
    (void)state;
    char again[100], path[180];
    handoff_broker_backend one = backend_at(place), other = backend_at(again);
    snprintf(again, sizeof again, "%s/", place);
    snprintf(path, sizeof path, "%s%s", again, fleet.paths[0] + strlen(place));
    listen_at(&fleet, 0, NULL);
    open_broker();
    assert_ok(handoff_broker_add(fleet.broker, &other));
    await_backends(2);
    assert_ok(handoff_broker_remove(fleet.broker, path));
    assert_ok(handoff_broker_add(fleet.broker, &one));
    assert_ok(handoff_broker_add(fleet.broker, &other));
    await_backends(1);
    assert_true(is_in_state(&fleet, 0, HANDOFF_STATE_READY));
}

static void path_without_room_for_a_name_is_refused(void **state)
{
    (void)state;
    char path[sizeof ((struct sockaddr_un *)0)->sun_path + 1];
    handoff_broker *broker = NULL;
    handoff_broker_backend backend = backend_at(path);
    memset(path, 'a', sizeof path);
    path[0] = path[105] = '/';
    path[106] = '\0';
    assert_ok(handoff_broker_new(path, NULL, &broker));
    handoff_broker_free(broker);
    memset(path + 105, 'a', 2);
    path[106] = '/';
    path[107] = '\0';
    assert_status(handoff_broker_new(path, NULL, &broker), HANDOFF_ERR_INVALID_ARGUMENT);
    open_broker();
    assert_status(handoff_broker_add(fleet.broker, &backend), HANDOFF_ERR_INVALID_ARGUMENT);
}

static void abstract_name_may_end_in_a_slash(void **state)
{
    (void)state;
    snprintf(fleet.paths[0], sizeof fleet.paths[0], "@handoff-%d/", getpid());
    listen_at(&fleet, 0, NULL);
    assert_ok(handoff_broker_new(fleet.paths[0], NULL, &fleet.broker));
    await_backends(1);
    offer_client(&fleet);
    assert_int_equal(arrivals_at(&fleet, 0, NULL), 1);
}

/* The file of one that was killed is still there, and the broker tries it ever more seldom. */
static void successor_of_a_backend_that_was_killed_is_used_at_once(void **state)
{
    (void)state;
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    options.reconnect_min_ms = options.reconnect_max_ms = 30000;
    bind_by_hand("0.sock", SOCK_SEQPACKET);
    assert_ok(handoff_broker_new(place, &options, &fleet.broker));
    until(&fleet, is_in_state(&fleet, 0, HANDOFF_STATE_DOWN));
    assert_true(state_of(fleet.broker, fleet.paths[0]).next_ms > 5000);
    uint64_t start = now_ns();
    listen_at(&fleet, 0, NULL);
    await_backends(1);
    assert_true(ms_since(start) < 20000);
}

static void descriptor_tells_that_a_socket_came(void **state)
{
    (void)state;
    open_broker();
    int fd = handoff_broker_fd(fleet.broker);
    for (int i = 0; i < 5; i++) {
        assert_ok(handoff_broker_dispatch(fleet.broker));
        while (is_readable(fd))
            assert_ok(handoff_broker_dispatch(fleet.broker));
        listen_at(&fleet, i, NULL);
        assert_true(is_readable(fd));
        await_backends((size_t)i + 1);
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        PLACE_TEST(sockets_that_are_there_and_those_that_come_are_backends),
        PLACE_TEST(names_in_the_state_are_in_order),
        PLACE_TEST(socket_that_goes_is_no_backend_any_more),
        PLACE_TEST(socket_that_comes_again_is_a_backend_again),
        PLACE_TEST(only_sockets_whose_names_begin_with_no_dot_are_backends),
        PLACE_TEST(socket_that_is_no_handoff_socket_is_down),
        PLACE_TEST(socket_that_moves_into_the_directory_is_a_backend),
        PLACE_TEST(directory_may_come_later_and_go_and_come_again),
        PLACE_TEST(directory_that_is_replaced_is_followed),
        PLACE_TEST(directory_without_permission_says_so),
        PLACE_TEST(directory_is_removed_with_its_backends_and_may_be_added_again),
        PLACE_TEST(directories_that_were_removed_take_no_memory),
        PLACE_TEST(settings_of_a_directory_are_those_of_its_backends),
        PLACE_TEST(backend_that_was_added_by_its_path_stays_when_its_file_goes),
        PLACE_TEST(backend_that_is_removed_stays_away_until_its_file_comes_anew),
        PLACE_TEST(backend_that_is_removed_with_offers_in_flight_stays_away),
        PLACE_TEST(successor_that_is_removed_at_once_stays_away),
        PLACE_TEST(backend_with_its_own_name_stays_away_too_when_it_is_removed),
        PLACE_TEST(successor_of_a_backend_with_its_own_name_is_the_directorys),
        PLACE_TEST(socket_that_is_replaced_is_followed_although_the_directory_is_read_anew),
        PLACE_TEST(two_paths_to_a_directory_are_two_directories),
        PLACE_TEST(path_without_room_for_a_name_is_refused),
        PLACE_TEST(abstract_name_may_end_in_a_slash),
        PLACE_TEST(successor_of_a_backend_that_was_killed_is_used_at_once),
        PLACE_TEST(descriptor_tells_that_a_socket_came),
    };
    return RUN_TESTS(tests);
}
