/* The handoff socket that a backend listens on. */
#define _GNU_SOURCE
#include "support.h"

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/file.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>
#include <unistd.h>

/* What each test begins with: a directory of its own, and the path of a socket to be made in it. */
static char directory[64], path[80];

static int make_place(void **state)
{
    descriptors_before(state);
    make_directory(directory);
    snprintf(path, sizeof path, "%s/socket", directory);
    return 0;
}

static int remove_place(void **state)
{
    remove_directory(directory);
    return descriptors_after(state);
}

#define LISTENER_TEST(function) \
    cmocka_unit_test_setup_teardown(function, make_place, remove_place)

static handoff_raw_listener *listen_at(const char *where)
{
    handoff_raw_listener *listener;
    assert_ok(handoff_raw_listener_new(where, NULL, &listener));
    return listener;
}

static handoff_status listen_with(uint32_t mode, handoff_raw_socket_type socket_type)
{
    handoff_raw_listener_options options = HANDOFF_RAW_LISTENER_OPTIONS_INIT;
    handoff_raw_listener *listener;
    options.mode = mode;
    options.socket_type = socket_type;
    handoff_status status = handoff_raw_listener_new(path, &options, &listener);
    if (status == HANDOFF_OK)
        handoff_raw_listener_free(listener);
    return status;
}

static void assert_not_listening(const char *where, handoff_status status)
{
    handoff_raw_listener *listener = NULL;
    assert_status(handoff_raw_listener_new(where, NULL, &listener), status);
    assert_null(listener);
}

static bool exists(const char *name)
{
    struct stat status;
    return lstat(name, &status) == 0;
}

static bool connects(const char *where)
{
    int socket;
    if (handoff_raw_connect(where, &socket) != HANDOFF_OK)
        return false;
    close(socket);
    return true;
}

/* A socket's file as bind(2) alone makes it, with whoever is behind it. */
static int bind_to(const char *where, int type)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
    assert_int_not_equal(fd, -1);
    snprintf(address.sun_path, sizeof address.sun_path, "%s", where);
    assert_int_equal(bind(fd, (struct sockaddr *)&address, sizeof address), 0);
    return fd;
}

static void leave_stale_socket(void)
{
    int fd = bind_to(path, SOCK_STREAM);
    assert_int_equal(listen(fd, 1), 0);
    close(fd);
    assert_true(exists(path));
}

static mode_t mode_of(const char *name)
{
    struct stat status;
    assert_int_equal(lstat(name, &status), 0);
    assert_true(S_ISSOCK(status.st_mode));
    return status.st_mode & 07777;
}

static void assert_mode_under_every_umask(const handoff_raw_listener_options *options, mode_t mode)
{
    static const mode_t umasks[] = {0, 022, 077, 0777};
    for (size_t i = 0; i < sizeof umasks / sizeof umasks[0]; i++) {
        handoff_raw_listener *listener;
        mode_t before = umask(umasks[i]);
        handoff_status status = handoff_raw_listener_new(path, options, &listener);
        mode_t after = umask(before);
        assert_ok(status);
        assert_int_equal(after, umasks[i]);
        assert_int_equal(mode_of(path), mode);
        handoff_raw_listener_free(listener);
    }
}

static void mode_of_0_is_0600_whatever_the_umask(void **state)
{
    (void)state;
    handoff_raw_listener_options init = HANDOFF_RAW_LISTENER_OPTIONS_INIT;
    handoff_raw_listener_options zero = {.size = sizeof zero};
    assert_mode_under_every_umask(NULL, 0600);
    assert_mode_under_every_umask(&init, 0600);
    assert_mode_under_every_umask(&zero, 0600);
}

static void mode_is_the_one_asked_for_whatever_the_umask(void **state)
{
    (void)state;
    static const mode_t modes[] = {1, 0660, 0666, 0777};
    for (size_t i = 0; i < sizeof modes / sizeof modes[0]; i++) {
        handoff_raw_listener_options options = HANDOFF_RAW_LISTENER_OPTIONS_INIT;
        options.mode = modes[i];
        assert_mode_under_every_umask(&options, modes[i]);
    }
}

static void listening_descriptor_is_non_blocking_and_close_on_exec(void **state)
{
    (void)state;
    handoff_raw_listener *listener = listen_at(path);
    int fd = handoff_raw_listener_fd(listener);
    int listens = 0;
    socklen_t len = sizeof listens;
    assert_int_equal(getsockopt(fd, SOL_SOCKET, SO_ACCEPTCONN, &listens, &len), 0);
    assert_int_equal(listens, 1);
    assert_true(fcntl(fd, F_GETFL) & O_NONBLOCK);
    assert_true(fcntl(fd, F_GETFD) & FD_CLOEXEC);
    handoff_raw_listener_free(listener);
}

static int type_of(handoff_raw_listener *listener)
{
    int type = 0;
    socklen_t len = sizeof type;
    assert_int_equal(
        getsockopt(handoff_raw_listener_fd(listener), SOL_SOCKET, SO_TYPE, &type, &len), 0);
    return type;
}

static void type_is_a_stream_or_the_one_asked_for(void **state)
{
    (void)state;
    static const struct {
        handoff_raw_socket_type asked;
        int type;
    } types[] = {{0, SOCK_STREAM},
                 {HANDOFF_RAW_STREAM, SOCK_STREAM},
                 {HANDOFF_RAW_SEQPACKET, SOCK_SEQPACKET}};
    handoff_raw_listener *listener = listen_at(path);
    assert_int_equal(type_of(listener), SOCK_STREAM);
    handoff_raw_listener_free(listener);
    for (size_t i = 0; i < sizeof types / sizeof types[0]; i++) {
        handoff_raw_listener_options options = HANDOFF_RAW_LISTENER_OPTIONS_INIT;
        options.socket_type = types[i].asked;
        assert_ok(handoff_raw_listener_new(path, &options, &listener));
        assert_int_equal(type_of(listener), types[i].type);
        assert_true(connects(path));
        handoff_raw_listener_free(listener);
    }
}

static void backlog_of_less_than_0_is_1(void **state)
{
    (void)state;
    static const int32_t backlogs[] = {1, -1, INT32_MIN};
    for (size_t i = 0; i < sizeof backlogs / sizeof backlogs[0]; i++) {
        handoff_raw_listener_options options = HANDOFF_RAW_LISTENER_OPTIONS_INIT;
        handoff_raw_listener *listener;
        int waiting[3] = {-1, -1, -1};
        options.backlog = backlogs[i];
        assert_ok(handoff_raw_listener_new(path, &options, &listener));
        /* Linux lets one more wait than it is told, net/unix/af_unix.c. */
        assert_ok(handoff_raw_connect(path, &waiting[0]));
        assert_ok(handoff_raw_connect(path, &waiting[1]));
        assert_status(handoff_raw_connect(path, &waiting[2]), HANDOFF_ERR_WOULD_BLOCK);
        close(waiting[0]);
        close(waiting[1]);
        handoff_raw_listener_free(listener);
    }
}

/* 4096, or as many as the system allows: more than nothing, in any case. */
static void backlog_of_0_is_the_default(void **state)
{
    (void)state;
    handoff_raw_listener_options zero = {.size = sizeof zero};
    handoff_raw_listener *listener;
    int waiting[20];
    assert_ok(handoff_raw_listener_new(path, &zero, &listener));
    for (int i = 0; i < 20; i++)
        assert_ok(handoff_raw_connect(path, &waiting[i]));
    for (int i = 0; i < 20; i++)
        close(waiting[i]);
    handoff_raw_listener_free(listener);
}

static void stale_socket_is_replaced(void **state)
{
    (void)state;
    leave_stale_socket();
    handoff_raw_listener *listener = listen_at(path);
    assert_true(connects(path));
    handoff_raw_listener_free(listener);
    assert_false(exists(path));
}

static void live_socket_of_either_type_is_left_alone(void **state)
{
    (void)state;
    static const handoff_raw_socket_type types[] = {HANDOFF_RAW_STREAM, HANDOFF_RAW_SEQPACKET};
    for (size_t i = 0; i < 2; i++) {
        handoff_raw_listener_options options = HANDOFF_RAW_LISTENER_OPTIONS_INIT;
        handoff_raw_listener *live;
        options.socket_type = types[i];
        assert_ok(handoff_raw_listener_new(path, &options, &live));
        assert_not_listening(path, HANDOFF_ERR_ADDRESS_IN_USE);
        assert_status(listen_with(0600, HANDOFF_RAW_SEQPACKET), HANDOFF_ERR_ADDRESS_IN_USE);
        assert_true(connects(path));
        handoff_raw_listener_free(live);
    }
}

static void live_socket_with_a_full_backlog_is_left_alone(void **state)
{
    (void)state;
    handoff_raw_listener_options options = HANDOFF_RAW_LISTENER_OPTIONS_INIT;
    handoff_raw_listener *live;
    int waiting[2];
    options.backlog = 1;
    assert_ok(handoff_raw_listener_new(path, &options, &live));
    assert_ok(handoff_raw_connect(path, &waiting[0]));
    assert_ok(handoff_raw_connect(path, &waiting[1]));
    assert_not_listening(path, HANDOFF_ERR_ADDRESS_IN_USE);
    assert_true(exists(path));
    close(waiting[0]);
    close(waiting[1]);
    handoff_raw_listener_free(live);
}

static void datagram_socket_is_left_alone(void **state)
{
    (void)state;
    int datagrams = bind_to(path, SOCK_DGRAM);
    assert_not_listening(path, HANDOFF_ERR_ADDRESS_IN_USE);
    assert_true(exists(path));
    close(datagrams);
}

static void regular_file_is_left_alone(void **state)
{
    (void)state;
    char content[16] = {0};
    int fd = open(path, O_RDWR | O_CREAT | O_CLOEXEC, 0600);
    assert_int_equal(write(fd, "precious", 8), 8);
    assert_not_listening(path, HANDOFF_ERR_NOT_A_SOCKET);
    close(fd);
    fd = open(path, O_RDONLY | O_CLOEXEC);
    assert_int_equal(read(fd, content, sizeof content), 8);
    assert_string_equal(content, "precious");
    close(fd);
}

static void directory_is_left_alone(void **state)
{
    (void)state;
    assert_int_equal(mkdir(path, 0700), 0);
    assert_not_listening(path, HANDOFF_ERR_NOT_A_SOCKET);
    assert_not_listening("/", HANDOFF_ERR_NOT_A_SOCKET);
    assert_int_equal(rmdir(path), 0);
}

static void symbolic_link_is_left_alone_wherever_it_points(void **state)
{
    (void)state;
    char target[80];
    snprintf(target, sizeof target, "%s/target", directory);
    assert_int_equal(symlink(target, path), 0);
    assert_not_listening(path, HANDOFF_ERR_NOT_A_SOCKET);
    assert_false(exists(target));
    close(bind_to(target, SOCK_STREAM));
    assert_not_listening(path, HANDOFF_ERR_NOT_A_SOCKET);
    assert_true(exists(target));
    assert_true(exists(path));
}

static void abstract_name_is_taken_once_and_makes_no_file(void **state)
{
    (void)state;
    char name[64];
    snprintf(name, sizeof name, "@handoff-test-listener-%d", getpid());
    handoff_raw_listener *listener = listen_at(name);
    assert_true(connects(name));
    assert_false(exists(name));
    assert_not_listening(name, HANDOFF_ERR_ADDRESS_IN_USE);
    handoff_raw_listener_free(listener);
    assert_false(connects(name));
}

static void file_is_removed_with_its_listener(void **state)
{
    (void)state;
    handoff_raw_listener *listener = listen_at(path);
    assert_true(exists(path));
    handoff_raw_listener_free(listener);
    assert_false(exists(path));
}

static void nothing_is_left_in_the_directory_but_the_socket(void **state)
{
    (void)state;
    handoff_raw_listener *listener = listen_at(path);
    /* rmdir(2) says whether a directory is empty. */
    assert_int_equal(unlink(path), 0);
    assert_int_equal(rmdir(directory), 0);
    handoff_raw_listener_free(listener);
    assert_int_equal(mkdir(directory, 0700), 0);
}

static void child_that_frees_its_copy_removes_nothing_and_the_parent_listens_on(void **state)
{
    (void)state;
    handoff_raw_listener *listener = listen_at(path);
    pid_t child = start_child();
    if (child == 0) {
        handoff_raw_listener_free(listener);
        _exit(!exists(path));
    }
    assert_child_succeeds(child);
    assert_true(connects(path));
    handoff_raw_listener_free(listener);
    assert_false(exists(path));
}

static void successor_under_the_same_name_is_not_removed(void **state)
{
    (void)state;
    handoff_raw_listener *listener = listen_at(path);
    assert_int_equal(unlink(path), 0);
    handoff_raw_listener *successor = listen_at(path);
    handoff_raw_listener_free(listener);
    assert_true(connects(path));
    handoff_raw_listener_free(successor);
    assert_false(exists(path));
}

static void relative_path_is_removed_though_the_directory_changed(void **state)
{
    (void)state;
    int before = open(".", O_PATH | O_DIRECTORY | O_CLOEXEC);
    assert_int_not_equal(before, -1);
    assert_int_equal(chdir(directory), 0);
    handoff_raw_listener *listener = listen_at("socket");
    assert_true(exists(path));
    assert_int_equal(fchdir(before), 0);
    handoff_raw_listener_free(listener);
    assert_false(exists(path));
    close(before);
}

static void path_of_107_bytes_will_do_and_of_108_will_not(void **state)
{
    (void)state;
    char filler[128], longest[128];
    memset(filler, 'x', sizeof filler);
    snprintf(longest, sizeof longest, "%s/%.*s", directory, (int)(107 - strlen(directory) - 1),
             filler);
    assert_int_equal(strlen(longest), 107);
    handoff_raw_listener_free(listen_at(longest));
    strcat(longest, "x");
    assert_not_listening(longest, HANDOFF_ERR_INVALID_ARGUMENT);
    filler[0] = '@';
    filler[107] = '\0';
    handoff_raw_listener_free(listen_at(filler));
    filler[107] = 'x';
    filler[108] = '\0';
    assert_not_listening(filler, HANDOFF_ERR_INVALID_ARGUMENT);
}

static void path_that_is_no_name_is_refused(void **state)
{
    (void)state;
    assert_not_listening("", HANDOFF_ERR_INVALID_ARGUMENT);
    assert_not_listening("@", HANDOFF_ERR_INVALID_ARGUMENT);
    assert_not_listening(NULL, HANDOFF_ERR_INVALID_ARGUMENT);
}

static void missing_directory_is_a_failure_that_errno_explains(void **state)
{
    (void)state;
    char missing[100];
    snprintf(missing, sizeof missing, "%s/missing/socket", directory);
    assert_not_listening(missing, HANDOFF_ERR_LISTEN_FAILED);
    assert_int_equal(errno, ENOENT);
    assert_non_null(strstr(handoff_last_error(), missing));
}

/* Root may do everything, so what permissions allow is tried in a child that is nobody. */
static void assert_listening_as_nobody(handoff_status status)
{
    pid_t child = start_child();
    if (child == 0) {
        handoff_raw_listener *listener = NULL;
        struct stat made;
        become_nobody();
        umask(0777);
        if (handoff_raw_listener_new(path, NULL, &listener) != status)
            _exit(1);
        if (status != HANDOFF_OK && errno != EACCES)
            _exit(2);
        char owners[100];
        snprintf(owners, sizeof owners, "this is user %u, the directory is of user 0 ", geteuid());
        if (status != HANDOFF_OK && strstr(handoff_last_error(), owners) == NULL)
            _exit(4);
        if (status == HANDOFF_OK && (stat(path, &made) != 0 || (made.st_mode & 07777) != 0600))
            _exit(3);
        handoff_raw_listener_free(listener);
        _exit(0);
    }
    assert_child_succeeds(child);
}

static void directory_that_may_not_be_written_is_permission_denied(void **state)
{
    (void)state;
    assert_int_equal(chmod(directory, 0755), 0);
    assert_listening_as_nobody(HANDOFF_ERR_PERMISSION_DENIED);
    assert_false(exists(path));
}

static void directory_that_may_not_be_entered_is_permission_denied(void **state)
{
    (void)state;
    assert_listening_as_nobody(HANDOFF_ERR_PERMISSION_DENIED);
}

static void directory_that_may_be_written_will_do_for_an_ordinary_user(void **state)
{
    (void)state;
    assert_int_equal(chmod(directory, 0777), 0);
    assert_listening_as_nobody(HANDOFF_OK);
    assert_false(exists(path));
}

static void socket_that_may_not_be_connected_to_is_left_alone(void **state)
{
    (void)state;
    assert_int_equal(chmod(directory, 0777), 0);
    leave_stale_socket();
    assert_int_equal(chmod(path, 0600), 0);
    assert_listening_as_nobody(HANDOFF_ERR_PERMISSION_DENIED);
    assert_true(exists(path));
}

static void directory_that_somebody_keeps_locked_is_no_obstacle(void **state)
{
    (void)state;
    int lock = open(directory, O_RDONLY | O_DIRECTORY | O_CLOEXEC);
    assert_int_equal(flock(lock, LOCK_EX), 0);
    leave_stale_socket();
    handoff_raw_listener_free(listen_at(path));
    assert_false(exists(path));
    close(lock);
}

static void listening_without_a_descriptor_left_is_descriptor_pressure(void **state)
{
    (void)state;
    handoff_raw_listener *listener = NULL;
    rlim_t before = allow_no_more_descriptors();
    handoff_status status = handoff_raw_listener_new(path, NULL, &listener);
    int error = errno;
    allow_descriptors(before);
    assert_status(status, HANDOFF_ERR_DESCRIPTOR_PRESSURE);
    assert_int_equal(error, EMFILE);
    assert_null(listener);
    assert_false(exists(path));
}

static void mode_beyond_0777_is_refused_and_named(void **state)
{
    (void)state;
    assert_invalid_because(listen_with(01000, HANDOFF_RAW_STREAM), "mode 1000");
    assert_invalid_because(listen_with(04755, HANDOFF_RAW_STREAM), "mode 4755");
    assert_invalid_because(listen_with(UINT32_MAX, HANDOFF_RAW_STREAM), "mode 37777777777");
    assert_false(exists(path));
}

static void unknown_socket_type_is_refused_and_named(void **state)
{
    (void)state;
    assert_invalid_because(listen_with(0600, HANDOFF_RAW_SEQPACKET + 1), "socket_type");
    assert_invalid_because(listen_with(0600, UINT32_MAX), "socket_type");
    assert_false(exists(path));
}

static void reserved_field_that_is_set_is_refused_and_named(void **state)
{
    (void)state;
    handoff_raw_listener_options options = HANDOFF_RAW_LISTENER_OPTIONS_INIT;
    handoff_raw_listener *none = NULL;
    options.reserved = 1;
    assert_status(handoff_raw_listener_new(path, &options, &none), HANDOFF_ERR_UNSUPPORTED);
    assert_last_error_has("options.reserved");
    assert_null(none);
    assert_false(exists(path));
}

static void null_and_misaligned_pointers_are_refused(void **state)
{
    (void)state;
    handoff_raw_listener *listener = NULL;
    assert_invalid(handoff_raw_listener_new(path, NULL, NULL));
    assert_invalid(handoff_raw_listener_new(path, NULL, misaligned()));
    assert_invalid(handoff_raw_listener_new(path, misaligned(), &listener));
    assert_null(listener);
    assert_false(exists(path));
    assert_int_equal(handoff_raw_listener_fd(NULL), -1);
    assert_int_equal(handoff_raw_listener_fd(misaligned()), -1);
    handoff_raw_listener_free(NULL);
    handoff_raw_listener_free(misaligned());
}

enum { BACKENDS = 4 };

/* A backend that starts when the start pipe is closed, says how it went and listens until the stop
   pipe is closed. */
static void start_backend(int start, int result, int stop)
{
    handoff_raw_listener *listener = NULL;
    signed char byte;
    if (read(start, &byte, 1) != 0)
        _exit(1);
    byte = (signed char)handoff_raw_listener_new(path, NULL, &listener);
    if (write(result, &byte, 1) != 1 || read(stop, &byte, 1) != 0)
        _exit(2);
    handoff_raw_listener_free(listener);
    _exit(0);
}

static void race_backends(void)
{
    int start[2], results[2], stop[2];
    pid_t children[BACKENDS];
    signed char statuses[BACKENDS];
    size_t listening = 0;
    assert_int_equal(pipe2(start, O_CLOEXEC), 0);
    assert_int_equal(pipe2(results, O_CLOEXEC), 0);
    assert_int_equal(pipe2(stop, O_CLOEXEC), 0);
    for (int i = 0; i < BACKENDS; i++) {
        children[i] = start_child();
        if (children[i] == 0) {
            close(start[1]);
            close(stop[1]);
            start_backend(start[0], results[1], stop[0]);
        }
    }
    close(start[1]);
    for (int i = 0; i < BACKENDS; i++) {
        struct pollfd came = {.fd = results[0], .events = POLLIN};
        assert_int_equal(poll(&came, 1, PATIENCE_MS), 1);
        assert_int_equal(read(results[0], &statuses[i], 1), 1);
        listening += statuses[i] == HANDOFF_OK;
        if (statuses[i] != HANDOFF_OK)
            assert_int_equal(statuses[i], HANDOFF_ERR_ADDRESS_IN_USE);
    }
    assert_int_equal(listening, 1);
    assert_true(connects(path));
    close(stop[1]);
    for (int i = 0; i < BACKENDS; i++)
        assert_child_succeeds(children[i]);
    assert_false(exists(path));
    close(start[0]);
    close(results[0]);
    close(results[1]);
    close(stop[0]);
}

static void of_processes_that_start_together_over_a_stale_socket_one_listens(void **state)
{
    (void)state;
    const char *rounds = getenv("HANDOFF_TEST_ROUNDS");
    for (long i = rounds != NULL ? atol(rounds) : 10; i > 0; i--) {
        leave_stale_socket();
        race_backends();
    }
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        LISTENER_TEST(mode_of_0_is_0600_whatever_the_umask),
        LISTENER_TEST(mode_is_the_one_asked_for_whatever_the_umask),
        LISTENER_TEST(listening_descriptor_is_non_blocking_and_close_on_exec),
        LISTENER_TEST(type_is_a_stream_or_the_one_asked_for),
        LISTENER_TEST(backlog_of_less_than_0_is_1),
        LISTENER_TEST(backlog_of_0_is_the_default),
        LISTENER_TEST(stale_socket_is_replaced),
        LISTENER_TEST(live_socket_of_either_type_is_left_alone),
        LISTENER_TEST(live_socket_with_a_full_backlog_is_left_alone),
        LISTENER_TEST(datagram_socket_is_left_alone),
        LISTENER_TEST(regular_file_is_left_alone),
        LISTENER_TEST(directory_is_left_alone),
        LISTENER_TEST(symbolic_link_is_left_alone_wherever_it_points),
        LISTENER_TEST(abstract_name_is_taken_once_and_makes_no_file),
        LISTENER_TEST(file_is_removed_with_its_listener),
        LISTENER_TEST(nothing_is_left_in_the_directory_but_the_socket),
        LISTENER_TEST(child_that_frees_its_copy_removes_nothing_and_the_parent_listens_on),
        LISTENER_TEST(successor_under_the_same_name_is_not_removed),
        LISTENER_TEST(relative_path_is_removed_though_the_directory_changed),
        LISTENER_TEST(path_of_107_bytes_will_do_and_of_108_will_not),
        LISTENER_TEST(path_that_is_no_name_is_refused),
        LISTENER_TEST(missing_directory_is_a_failure_that_errno_explains),
        LISTENER_TEST(directory_that_may_not_be_written_is_permission_denied),
        LISTENER_TEST(directory_that_may_not_be_entered_is_permission_denied),
        LISTENER_TEST(directory_that_may_be_written_will_do_for_an_ordinary_user),
        LISTENER_TEST(socket_that_may_not_be_connected_to_is_left_alone),
        LISTENER_TEST(directory_that_somebody_keeps_locked_is_no_obstacle),
        LISTENER_TEST(listening_without_a_descriptor_left_is_descriptor_pressure),
        LISTENER_TEST(mode_beyond_0777_is_refused_and_named),
        LISTENER_TEST(unknown_socket_type_is_refused_and_named),
        LISTENER_TEST(reserved_field_that_is_set_is_refused_and_named),
        LISTENER_TEST(null_and_misaligned_pointers_are_refused),
        LISTENER_TEST(of_processes_that_start_together_over_a_stale_socket_one_listens),
    };
    return RUN_TESTS(tests);
}
