/* Connecting, and sending a descriptor with its token. */
#define _GNU_SOURCE
#include "wire.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/un.h>

static void sent_descriptor_arrives_with_its_token(void **state)
{
    struct wire *wire = *state;
    handoff_raw_token token;
    int fd;
    assert_ok(handoff_raw_send(wire->broker, wire->connection, &wire->token));
    assert_ok(handoff_raw_receive(wire->backend, 0, &token, &fd));
    assert_true(handoff_raw_token_equal(&token, &wire->token));
    assert_int_not_equal(fd, wire->connection);
    assert_same_socket(fd, wire->connection);
    assert_reaches_client(wire, fd);
    close(fd);
}

static void message_is_the_token_and_nothing_else(void **state)
{
    struct wire *wire = *state;
    char bytes[64];
    assert_ok(handoff_raw_send(wire->broker, wire->connection, &wire->token));
    assert_int_equal(recv(wire->backend, bytes, sizeof bytes, MSG_DONTWAIT), HANDOFF_RAW_TOKEN_LEN);
    assert_memory_equal(bytes, wire->token.bytes, HANDOFF_RAW_TOKEN_LEN);
    assert_nothing_to_read(wire->backend);
}

static void descriptor_closed_right_after_send_arrives_usable(void **state)
{
    struct wire *wire = *state;
    handoff_raw_token token;
    int fd;
    assert_ok(handoff_raw_send(wire->broker, wire->connection, &wire->token));
    close_end(&wire->connection);
    assert_ok(handoff_raw_receive(wire->backend, 0, &token, &fd));
    assert_reaches_client(wire, fd);
    close(fd);
}

static void sending_leaves_the_flags_of_the_descriptor_alone(void **state)
{
    struct wire *wire = *state;
    for (int nonblocking = 0; nonblocking < 2; nonblocking++) {
        handoff_raw_token token;
        int fd, flags = nonblocking ? O_RDWR | O_NONBLOCK : O_RDWR;
        assert_int_equal(fcntl(wire->connection, F_SETFL, flags), 0);
        assert_ok(handoff_raw_send(wire->broker, wire->connection, &wire->token));
        assert_ok(handoff_raw_receive(wire->backend, 0, &token, &fd));
        assert_int_equal(fcntl(fd, F_GETFL), flags);
        assert_int_equal(fcntl(wire->connection, F_GETFL), flags);
        assert_int_equal(fcntl(wire->connection, F_GETFD), FD_CLOEXEC);
        close(fd);
    }
}

static void closed_receiver_is_unavailable(void **state)
{
    struct wire *wire = *state;
    char socket[32];
    snprintf(socket, sizeof socket, "socket %d", wire->broker);
    close_end(&wire->backend);
    assert_status(handoff_raw_send(wire->broker, wire->connection, &wire->token),
                  HANDOFF_ERR_BACKEND_UNAVAILABLE);
    assert_int_equal(errno, EPIPE);
    assert_non_null(strstr(handoff_last_error(), socket));
}

static void unconnected_socket_is_unavailable(void **state)
{
    struct wire *wire = *state;
    int unconnected = socket(AF_UNIX, wire->type | SOCK_CLOEXEC, 0);
    assert_status(handoff_raw_send(unconnected, wire->connection, &wire->token),
                  HANDOFF_ERR_BACKEND_UNAVAILABLE);
    assert_int_equal(errno, ENOTCONN);
    close(unconnected);
}

static void sending_never_raises_sigpipe(void **state)
{
    struct wire *wire = *state;
    close_end(&wire->backend);
    pid_t child = start_child();
    if (child == 0) {
        signal(SIGPIPE, SIG_DFL);
        child_assert(handoff_raw_send(wire->broker, wire->connection, &wire->token) ==
                     HANDOFF_ERR_BACKEND_UNAVAILABLE);
        _exit(0);
    }
    assert_child_succeeds(child);
}

static void full_socket_would_block_and_takes_nothing(void **state)
{
    struct wire *wire = *state;
    handoff_status status;
    handoff_raw_token token;
    int fd, sent = 0, received = 0;
    while ((status = handoff_raw_send(wire->broker, wire->connection, &wire->token)) == HANDOFF_OK)
        sent++;
    assert_status(status, HANDOFF_ERR_WOULD_BLOCK);
    assert_int_equal(errno, EAGAIN);
    assert_true(sent > 0);
    while ((status = handoff_raw_receive(wire->backend, 0, &token, &fd)) == HANDOFF_OK) {
        assert_true(handoff_raw_token_equal(&token, &wire->token));
        close(fd);
        received++;
    }
    assert_status(status, HANDOFF_TIMED_OUT);
    assert_int_equal(received, sent);
    assert_ok(handoff_raw_send(wire->broker, wire->connection, &wire->token));
}

static void socket_is_not_sent_over_itself(void **state)
{
    struct wire *wire = *state;
    assert_status(handoff_raw_send(wire->broker, wire->broker, &wire->token),
                  HANDOFF_ERR_INVALID_ARGUMENT);
    assert_nothing_to_read(wire->backend);
}

static void duplicate_of_the_socket_is_sent_over_it(void **state)
{
    struct wire *wire = *state;
    handoff_raw_token token;
    int fd, duplicate = dup(wire->broker);
    assert_ok(handoff_raw_send(wire->broker, duplicate, &wire->token));
    assert_ok(handoff_raw_receive(wire->backend, 0, &token, &fd));
    assert_same_socket(fd, wire->broker);
    close(fd);
    close(duplicate);
    close_end(&wire->broker);
    assert_status(handoff_raw_receive(wire->backend, 0, &token, &fd), HANDOFF_ERR_END_OF_STREAM);
}

/* A socket that lies in its own queue keeps itself alive; the kernel must find that. */
static void socket_left_in_its_own_queue_goes_when_it_is_closed(void **state)
{
    struct wire *wire = *state;
    assert_ok(handoff_raw_send(wire->broker, wire->backend, &wire->token));
    assert_ok(handoff_raw_send(wire->broker, wire->connection, &wire->token));
    close_end(&wire->backend);
    close_end(&wire->broker);
    assert_client_sees_end(wire);
}

static void send_refuses_what_cannot_be_sent(void **state)
{
    struct wire *wire = *state;
    int files[2];
    assert_int_equal(pipe2(files, O_CLOEXEC), 0);
    close(files[1]);
    int closed = files[1];
    const struct {
        int socket, fd;
        const handoff_raw_token *token;
        int error;
    } bad[] = {
        {-1, wire->connection, &wire->token, 0},
        {wire->broker, -1, &wire->token, 0},
        {wire->broker, -100, &wire->token, 0},
        {wire->broker, wire->connection, NULL, 0},
        {closed, wire->connection, &wire->token, EBADF},
        {wire->broker, closed, &wire->token, EBADF},
        {files[0], wire->connection, &wire->token, ENOTSOCK},
    };
    for (size_t i = 0; i < sizeof bad / sizeof *bad; i++) {
        errno = ERANGE;
        assert_status(handoff_raw_send(bad[i].socket, bad[i].fd, bad[i].token),
                      HANDOFF_ERR_INVALID_ARGUMENT);
        assert_int_equal(errno, bad[i].error);
    }
    assert_nothing_to_read(wire->backend);
    close(files[0]);
}

/* ---- by path --------------------------------------------------------------------------------- */

static void connection_is_of_the_listeners_type_and_does_not_block(void **state)
{
    struct wire *wire = *state;
    struct place place = make_place();
    handoff_raw_listener *listener = listen_at(place.path, wire->type);
    int socket, type;
    socklen_t len = sizeof type;
    assert_ok(handoff_raw_connect(place.path, &socket));
    assert_int_equal(getsockopt(socket, SOL_SOCKET, SO_TYPE, &type, &len), 0);
    assert_int_equal(type, wire->type);
    assert_true(fcntl(socket, F_GETFL) & O_NONBLOCK);
    assert_int_equal(fcntl(socket, F_GETFD), FD_CLOEXEC);
    close(socket);
    handoff_raw_listener_free(listener);
    remove_directory(place.directory);
}

static void abstract_name_is_connected_to(void **state)
{
    struct wire *wire = *state;
    char name[64];
    int socket;
    snprintf(name, sizeof name, "@handoff-test-%d", (int)getpid());
    handoff_raw_listener *listener = listen_at(name, wire->type);
    assert_ok(handoff_raw_connect(name, &socket));
    close(socket);
    handoff_raw_listener_free(listener);
    assert_status(handoff_raw_connect(name, &socket), HANDOFF_ERR_BACKEND_UNAVAILABLE);
}

static void send_path_brings_the_message_and_the_way_back(void **state)
{
    struct wire *wire = *state;
    struct place place = make_place();
    handoff_raw_listener *listener = listen_at(place.path, wire->type);
    handoff_raw_token token;
    handoff_raw_ack ack = HANDOFF_RAW_ACK_INIT;
    int socket, accepted, fd;
    assert_ok(handoff_raw_send_path(place.path, wire->connection, &wire->token, &socket));
    assert_true(fcntl(socket, F_GETFL) & O_NONBLOCK);
    assert_int_equal(fcntl(socket, F_GETFD), FD_CLOEXEC);
    assert_ok(handoff_raw_listener_accept(listener, NULL, 0, &accepted));
    assert_ok(handoff_raw_receive(accepted, 0, &token, &fd));
    assert_true(handoff_raw_token_equal(&token, &wire->token));
    assert_same_socket(fd, wire->connection);
    assert_ok(handoff_raw_ack_accept(accepted, &token));
    assert_ok(handoff_raw_ack_receive(socket, &ack));
    close(fd);
    close(accepted);
    close(socket);
    handoff_raw_listener_free(listener);
    remove_directory(place.directory);
}

/* handoff_raw_connect() and handoff_raw_send_path() refuse a path in the same way and give no
 * socket. */
static void assert_no_way(const struct wire *wire, const char *path, handoff_status expected,
                          int error)
{
    int socket = -7;
    errno = ERANGE;
    assert_status(handoff_raw_connect(path, &socket), expected);
    assert_int_equal(errno, error);
    errno = ERANGE;
    assert_status(handoff_raw_send_path(path, wire->connection, &wire->token, &socket), expected);
    assert_int_equal(errno, error);
    assert_int_equal(socket, -7);
    if (path != NULL)
        assert_non_null(strstr(handoff_last_error(), path));
}

static void missing_path_is_unavailable(void **state)
{
    struct place place = make_place();
    assert_no_way(*state, place.path, HANDOFF_ERR_BACKEND_UNAVAILABLE, ENOENT);
    remove_directory(place.directory);
}

static void path_of_a_regular_file_is_unavailable(void **state)
{
    struct place place = make_place();
    close(open(place.path, O_CREAT | O_WRONLY | O_CLOEXEC, 0600));
    assert_no_way(*state, place.path, HANDOFF_ERR_BACKEND_UNAVAILABLE, ECONNREFUSED);
    remove_directory(place.directory);
}

static int bind_socket(const char *path, int type)
{
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    int bound = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
    strcpy(address.sun_path, path);
    assert_int_equal(bind(bound, (struct sockaddr *)&address, sizeof address), 0);
    return bound;
}

static void path_that_nobody_listens_on_any_more_is_unavailable(void **state)
{
    struct wire *wire = *state;
    struct place place = make_place();
    close(bind_socket(place.path, wire->type));
    assert_no_way(wire, place.path, HANDOFF_ERR_BACKEND_UNAVAILABLE, ECONNREFUSED);
    remove_directory(place.directory);
}

static void path_of_a_datagram_socket_is_unavailable(void **state)
{
    struct place place = make_place();
    int datagram = bind_socket(place.path, SOCK_DGRAM);
    assert_no_way(*state, place.path, HANDOFF_ERR_BACKEND_UNAVAILABLE, EPROTOTYPE);
    close(datagram);
    remove_directory(place.directory);
}

static void unprivileged_user_is_denied(void **state)
{
    struct wire *wire = *state;
    need_root();
    struct place place = make_place();
    handoff_raw_listener *listener = listen_at(place.path, wire->type);
    assert_int_equal(chmod(place.directory, 0755), 0);
    pid_t child = start_child();
    if (child == 0) {
        int socket = -7;
        become_nobody();
        child_assert(handoff_raw_connect(place.path, &socket) == HANDOFF_ERR_PERMISSION_DENIED);
        child_assert(errno == EACCES);
        child_assert(handoff_raw_send_path(place.path, wire->connection, &wire->token, &socket) ==
                     HANDOFF_ERR_PERMISSION_DENIED);
        child_assert(errno == EACCES && socket == -7);
        handoff_raw_listener_free(listener);
        _exit(0);
    }
    assert_child_succeeds(child);
    handoff_raw_listener_free(listener);
    remove_directory(place.directory);
}

static void path_that_cannot_be_a_sockets_is_refused(void **state)
{
    char longest[109];
    memset(longest, 'x', sizeof longest);
    longest[108] = '\0';
    assert_no_way(*state, NULL, HANDOFF_ERR_INVALID_ARGUMENT, 0);
    assert_no_way(*state, "", HANDOFF_ERR_INVALID_ARGUMENT, 0);
    assert_no_way(*state, "@", HANDOFF_ERR_INVALID_ARGUMENT, 0);
    assert_status(handoff_raw_connect(longest, &(int){0}), HANDOFF_ERR_INVALID_ARGUMENT);
    assert_last_error_has("the path has 108 bytes, and a Unix socket's has 107 at the most");
}

static void failed_send_leaves_no_connection_and_bad_arguments_make_none(void **state)
{
    struct wire *wire = *state;
    struct place place = make_place();
    handoff_raw_listener *listener = listen_at(place.path, wire->type);
    int socket = -7, closed = lowest_free_descriptor() + 100;
    const handoff_raw_token *token = &wire->token;
    assert_status(handoff_raw_connect(place.path, NULL), HANDOFF_ERR_INVALID_ARGUMENT);
    assert_status(handoff_raw_connect(place.path, misaligned()), HANDOFF_ERR_INVALID_ARGUMENT);
    assert_status(handoff_raw_send_path(place.path, -1, token, &socket),
                  HANDOFF_ERR_INVALID_ARGUMENT);
    assert_status(handoff_raw_send_path(place.path, wire->connection, NULL, &socket),
                  HANDOFF_ERR_INVALID_ARGUMENT);
    assert_status(handoff_raw_send_path(place.path, wire->connection, token, NULL),
                  HANDOFF_ERR_INVALID_ARGUMENT);
    assert_status(handoff_raw_send_path(place.path, wire->connection, token, misaligned()),
                  HANDOFF_ERR_INVALID_ARGUMENT);
    assert_nothing_to_read(handoff_raw_listener_fd(listener));
    assert_status(handoff_raw_send_path(place.path, closed, token, &socket),
                  HANDOFF_ERR_INVALID_ARGUMENT);
    assert_int_equal(errno, EBADF);
    assert_int_equal(socket, -7);
    handoff_raw_listener_free(listener);
    remove_directory(place.directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WIRE_TEST(sent_descriptor_arrives_with_its_token),
        WIRE_TEST(message_is_the_token_and_nothing_else),
        WIRE_TEST(descriptor_closed_right_after_send_arrives_usable),
        WIRE_TEST(sending_leaves_the_flags_of_the_descriptor_alone),
        WIRE_TEST(closed_receiver_is_unavailable),
        WIRE_TEST(unconnected_socket_is_unavailable),
        WIRE_TEST(sending_never_raises_sigpipe),
        WIRE_TEST(full_socket_would_block_and_takes_nothing),
        WIRE_TEST(socket_is_not_sent_over_itself),
        WIRE_TEST(duplicate_of_the_socket_is_sent_over_it),
        WIRE_TEST(socket_left_in_its_own_queue_goes_when_it_is_closed),
        WIRE_TEST(send_refuses_what_cannot_be_sent),
        WIRE_TEST(connection_is_of_the_listeners_type_and_does_not_block),
        WIRE_TEST(abstract_name_is_connected_to),
        WIRE_TEST(send_path_brings_the_message_and_the_way_back),
        STREAM_TEST(missing_path_is_unavailable),
        STREAM_TEST(path_of_a_regular_file_is_unavailable),
        WIRE_TEST(path_that_nobody_listens_on_any_more_is_unavailable),
        STREAM_TEST(path_of_a_datagram_socket_is_unavailable),
        WIRE_TEST(unprivileged_user_is_denied),
        STREAM_TEST(path_that_cannot_be_a_sockets_is_refused),
        WIRE_TEST(failed_send_leaves_no_connection_and_bad_arguments_make_none),
    };
    return RUN_TESTS(tests);
}
