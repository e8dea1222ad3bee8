/* What messages say: which descriptor or path, what it is, which limit, and what to do. */
#define _GNU_SOURCE
#include "channel.h"
#include "wire.h"

#include <errno.h>
#include <fcntl.h>
#include <netinet/in.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/un.h>

/* A number that nothing else in a message could be taken for. */
static int renumber(int fd)
{
    static int next = 700;
    int high = fcntl(fd, F_DUPFD_CLOEXEC, next);
    assert_int_not_equal(high, -1);
    next = high + 1;
    close(fd);
    return high;
}

/* Asserts that the last message names a descriptor as "NAME NUMBER" and says something of it. */
static void assert_message_of(const char *name, int fd, const char *says)
{
    char text[300];
    snprintf(text, sizeof text, "%s %d%s", name, fd, says);
    assert_last_error_has(text);
}

struct odd {
    int fd;
    const char *is;
};

enum { ODD = 5 };

/* Descriptors that are no sockets, and one that is not open. */
static void open_odd(struct odd odd[ODD])
{
    int ends[2];
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    close(ends[1]);
    odd[0] = (struct odd){renumber(ends[0]), " is a pipe"};
    odd[1] = (struct odd){renumber(open("/proc/self/exe", O_RDONLY | O_CLOEXEC)),
                          " is a regular file"};
    odd[2] = (struct odd){renumber(open("/", O_RDONLY | O_CLOEXEC)), " is a directory"};
    odd[3] = (struct odd){renumber(open("/dev/null", O_RDONLY | O_CLOEXEC)), " is a device"};
    odd[4] = (struct odd){4711, " is not open"};
}

static void close_odd(struct odd odd[ODD])
{
    for (int i = 0; i < ODD - 1; i++)
        close(odd[i].fd);
}

/* ---- the backend ------------------------------------------------------------------------------ */

static int unix_socket(int type, int listens)
{
    sa_family_t family = AF_UNIX;
    int fd = socket(AF_UNIX, type | SOCK_CLOEXEC, 0);
    /* A name that the system chooses. */
    assert_int_equal(bind(fd, (struct sockaddr *)&family, sizeof family), 0);
    if (listens)
        assert_int_equal(listen(fd, 8), 0);
    return renumber(fd);
}

static void listening_on_what_is_no_listener_names_the_callers_descriptor(void **state)
{
    (void)state;
    struct odd odd[ODD];
    handoff_backend *none = NULL;
    open_odd(odd);
    for (int i = 0; i < ODD; i++) {
        assert_invalid(handoff_backend_listen_on(odd[i].fd, NULL, &none));
        assert_message_of("descriptor", odd[i].fd, odd[i].is);
        assert_last_error_has("SOCK_SEQPACKET");
    }
    close_odd(odd);
    struct odd sockets[] = {
        {unix_socket(SOCK_SEQPACKET, 0), " is a Unix socket that does not listen"},
        {unix_socket(SOCK_STREAM, 1), " is a Unix socket of another type"},
        {renumber(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0)), " is a socket of another family"},
    };
    for (int i = 0; i < 3; i++) {
        assert_invalid(handoff_backend_listen_on(sockets[i].fd, NULL, &none));
        assert_message_of("descriptor", sockets[i].fd, sockets[i].is);
        close(sockets[i].fd);
    }
    assert_null(none);
    int listener = unix_socket(SOCK_SEQPACKET, 1);
    assert_ok(handoff_backend_listen_on(listener, NULL, &none));
    handoff_backend_free(none);
    close(listener);
}

/* ---- the broker ------------------------------------------------------------------------------- */

static void offering_what_is_no_socket_points_to_the_raw_layer(void **state)
{
    (void)state;
    struct channel channel;
    struct odd odd[ODD];
    open_channel(&channel, NULL, NULL);
    open_odd(odd);
    for (int i = 0; i < ODD; i++) {
        handoff_offer offer = offer_of(odd[i].fd);
        assert_invalid(handoff_broker_offer(channel.broker, &offer, NULL));
        assert_int_equal(errno, i == ODD - 1 ? EBADF : ENOTSOCK);
        assert_message_of("descriptor", odd[i].fd, odd[i].is);
        if (i < ODD - 1)
            assert_last_error_has("raw layer");
    }
    close_odd(odd);
    close_channel(&channel);
}

static void offer_that_is_too_large_says_what_of_it_and_what_is_allowed(void **state)
{
    (void)state;
    struct channel channel;
    static char name[301], bytes[100];
    int client[2];
    handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
    options.max_offer_bytes = 99;
    open_channel(&channel, NULL, &options);
    make_pair(SOCK_STREAM, client);
    memset(name, 'n', 300);
    handoff_offer service = offer_of(client[0]), correlation = service, preread = service;
    service.service = correlation.correlation = name;
    preread.preread = bytes;
    preread.preread_len = sizeof bytes;
    assert_status(handoff_broker_offer(channel.broker, &service, NULL), HANDOFF_ERR_TOO_LARGE);
    assert_last_error_has("300 bytes in service, and at most 255 are allowed");
    assert_status(handoff_broker_offer(channel.broker, &correlation, NULL), HANDOFF_ERR_TOO_LARGE);
    assert_last_error_has("300 bytes in correlation, and at most 255 are allowed");
    assert_status(handoff_broker_offer(channel.broker, &preread, NULL), HANDOFF_ERR_TOO_LARGE);
    assert_last_error_has("100 bytes in preread, metadata and names together, and at most 99 are "
                          "allowed");
    close(client[0]);
    close(client[1]);
    close_channel(&channel);
}

static void assert_full_because(struct channel *channel, const handoff_offer *offer,
                                const char *text)
{
    assert_status(handoff_broker_offer(channel->broker, offer, NULL), HANDOFF_ERR_FULL);
    assert_last_error_has(channel->path);
    assert_last_error_has(text);
}

static void full_broker_says_which_limit_is_reached(void **state)
{
    (void)state;
    enum { BYTES = 60000 };
    static char bytes[BYTES];
    struct channel channel;
    int client[2];
    uint64_t id;
    handoff_broker_options options = HANDOFF_BROKER_OPTIONS_INIT;
    options.max_in_flight = 3;
    make_pair(SOCK_STREAM, client);
    handoff_offer offer = offer_of(client[0]);

    open_channel(&channel, &options, NULL);
    for (int i = 0; i < 3; i++)
        assert_ok(handoff_broker_offer(channel.broker, &offer, &id));
    assert_full_because(&channel, &offer, "the limit of offers in flight is reached: 3 of 3 "
                                          "(max_in_flight of the broker)");
    /* The backend has it, and has not answered. */
    assert_ok(handoff_broker_take_back(channel.broker, id));
    assert_full_because(&channel, &offer, "the limit of offers in flight is reached: 2 of 3 "
                                          "(max_in_flight of the broker), and 1 more, taken back "
                                          "or adopted, that the backend has not answered");
    close_channel(&channel);

    handoff_backend_options fewer = HANDOFF_BACKEND_OPTIONS_INIT;
    fewer.max_in_flight = 1;
    open_channel(&channel, &options, &fewer);
    assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    assert_full_because(&channel, &offer, "the limit of offers in flight is reached: 1 of 1 "
                                          "(max_in_flight of the backend)");
    close_channel(&channel);

    open_channel(&channel, &options, NULL);
    for (int i = 0; i < 3; i++) {
        offer_fd(&channel, client[0]);
        adopt(&channel, arrival_of(&channel).id);
        assert_no_arrival(&channel);
        assert_ok(handoff_broker_dispatch(channel.broker));
    }
    assert_full_because(&channel, &offer, "the limit of verdicts that were not taken is reached: 3; "
                                          "take them");
    close_channel(&channel);

    options.max_in_flight = 100;
    options.queue_bytes = 1;
    offer.preread = bytes;
    offer.preread_len = BYTES;
    open_channel(&channel, &options, NULL);
    while (handoff_broker_offer(channel.broker, &offer, NULL) == HANDOFF_OK)
        ;
    assert_full_because(&channel, &offer,
                        "with this offer 180168 bytes would be queued, and 131072 may be "
                        "(queue_bytes of the broker)");
    close_channel(&channel);
    close(client[0]);
    close(client[1]);
}

static void path_that_is_too_long_is_cut_and_the_limit_named(void **state)
{
    (void)state;
    static char path[3001];
    handoff_broker *broker = NULL;
    handoff_backend *backend = NULL;
    handoff_raw_listener *listener = NULL;
    memset(path, 'x', sizeof path - 1);
    const char *says = "xxx...: the path has 3000 bytes, and a Unix socket's has 107 at the most";
    assert_invalid_because(handoff_broker_new(path, NULL, &broker), says);
    assert_invalid_because(handoff_backend_listen(path, NULL, &backend), says);
    assert_invalid_because(handoff_raw_listener_new(path, NULL, &listener), says);
    assert_true(strlen(handoff_last_error()) < 200);
    /* A character of two bytes is not cut in two. */
    for (size_t i = 0; i + 1 < sizeof path; i += 2)
        memcpy(path + i, "\xc3\xbc", 2);
    path[0] = '/';
    path[1] = 'x';
    assert_invalid(handoff_broker_new(path, NULL, &broker));
    assert_last_error_has("\xc3\xbc...: the path has 3000 bytes");
    memmove(path + 1, path, sizeof path - 2);
    assert_invalid(handoff_broker_new(path, NULL, &broker));
    assert_last_error_has("...: the path has 3000 bytes");
}

/* The system's words for some of these say something else. */
static void broker_without_a_channel_says_why(void **state)
{
    (void)state;
    struct channel channel;
    int client[2];
    make_pair(SOCK_STREAM, client);
    handoff_offer offer = offer_of(client[0]);
    const handoff_status unavailable = HANDOFF_ERR_BACKEND_UNAVAILABLE;
    open_channel(&channel, NULL, NULL);
    handoff_broker *early;
    assert_ok(handoff_broker_new(channel.path, NULL, &early));
    assert_status(handoff_broker_offer(early, &offer, NULL), unavailable);
    assert_last_error_has(channel.path);
    assert_last_error_has("the backend has not answered yet");
    handoff_broker_free(early);
    assert_ok(handoff_backend_drain(channel.backend));
    assert_ok(handoff_broker_dispatch(channel.broker));
    assert_status(handoff_broker_offer(channel.broker, &offer, NULL), unavailable);
    assert_last_error_has("the backend drains");
    handoff_backend_free(channel.backend);
    channel.backend = NULL;
    assert_ok(handoff_broker_dispatch(channel.broker));
    assert_status(handoff_broker_offer(channel.broker, &offer, NULL), unavailable);
    assert_last_error_has("no channel to the backend now, ");
    assert_ok(handoff_broker_new("/nonexistent/socket", NULL, &early));
    assert_status(handoff_broker_offer(early, &offer, NULL), unavailable);
    assert_last_error_has("there is no such socket");
    handoff_broker_free(early);
    assert_ok(handoff_broker_new("/dev/null", NULL, &early));
    assert_status(handoff_broker_offer(early, &offer, NULL), unavailable);
    assert_last_error_has("what is there is not a socket");
    assert_int_equal(errno, ENOTSOCK);
    handoff_broker_free(early);
    /* An abstract name has nothing to do with the file of that name. */
    assert_int_equal(mkdir("@handoff-test-nobody", 0700), 0);
    assert_ok(handoff_broker_new("@handoff-test-nobody", NULL, &early));
    assert_status(handoff_broker_offer(early, &offer, NULL), unavailable);
    assert_last_error_has("nobody listens");
    handoff_broker_free(early);
    assert_int_equal(rmdir("@handoff-test-nobody"), 0);
    close(client[0]);
    close(client[1]);
    close_channel(&channel);
}

static void shortage_of_descriptors_says_whose_limit_it_is(void **state)
{
    (void)state;
    int socket;
    rlim_t limit = allow_no_more_descriptors();
    handoff_status status = handoff_raw_connect("/nonexistent/socket", &socket);
    allow_descriptors(limit);
    assert_status(status, HANDOFF_ERR_DESCRIPTOR_PRESSURE);
    assert_last_error_has("this process is at its limit of descriptors, RLIMIT_NOFILE");
}

/* ---- the raw layer ---------------------------------------------------------------------------- */

static void peer_that_is_not_accepted_is_said_of_the_listener(void **state)
{
    (void)state;
    struct place place = make_place();
    static const uint32_t nobody[] = {UINT32_MAX - 1};
    handoff_peer_policy policy = HANDOFF_PEER_POLICY_INIT;
    policy.users = nobody;
    policy.users_len = 1;
    handoff_raw_listener *listener = listen_at(place.path, SOCK_STREAM);
    int socket, accepted;
    assert_ok(handoff_raw_connect(place.path, &socket));
    assert_status(handoff_raw_listener_accept(listener, &policy, 0, &accepted),
                  HANDOFF_ERR_PEER_NOT_ALLOWED);
    assert_message_of("socket", handoff_raw_listener_fd(listener), ": the policy does not allow");
    close(socket);
    handoff_raw_listener_free(listener);
    remove_directory(place.directory);
}

/* The arguments in the wrong order: a client would get the token. */
static void assert_token_is_not_sent_over(int tcp, int other, const struct wire *wire)
{
    char byte;
    assert_invalid(handoff_raw_send(tcp, wire->broker, &wire->token));
    assert_message_of("socket", tcp, " is not a Unix socket");
    assert_invalid(handoff_raw_token_send(tcp, &wire->token));
    assert_message_of("socket", tcp, " is not a Unix socket");
    assert_invalid(handoff_raw_ack_accept(tcp, &wire->token));
    assert_message_of("socket", tcp, " is not a Unix socket");
    assert_invalid(handoff_raw_ack_reject(tcp, &wire->token, HANDOFF_REASON_REJECTED));
    assert_message_of("socket", tcp, " is not a Unix socket");
    assert_int_equal(recv(other, &byte, 1, MSG_DONTWAIT), -1);
    assert_int_equal(errno, EAGAIN);
    assert_int_equal(send(tcp, "x", 1, 0), 1);
    assert_int_equal(recv(other, &byte, 1, 0), 1);
    assert_int_equal(byte, 'x');
    assert_int_equal(recv(other, &byte, 1, MSG_DONTWAIT), -1);
}

/* Runtimes such as Go's listen with MPTCP where the kernel has it. */
static void token_is_not_sent_over_tcp_with_several_paths(void **state)
{
    enum { MULTIPATH = 262 }; /* IPPROTO_MPTCP, which old headers lack */
    int ends[2];
    if (!make_inet_pair(ends, MULTIPATH)) {
        print_message("this kernel has no MPTCP\n");
        skip();
    }
    for (int i = 0; i < 2; i++)
        assert_token_is_not_sent_over(ends[i], ends[1 - i], *state);
    close(ends[0]);
    close(ends[1]);
}

static void sending_over_what_cannot_carry_it_is_refused_and_sends_nothing(void **state)
{
    struct wire *wire = *state;
    struct odd odd[ODD];
    int fd = renumber(wire->connection);
    wire->connection = fd;
    assert_token_is_not_sent_over(wire->connection, wire->client, wire);
    assert_token_is_not_sent_over(wire->client, wire->connection, wire);
    int fresh = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    handoff_status status = handoff_raw_send(fresh, wire->broker, &wire->token);
    assert_true(status < 0);
    assert_false(handoff_status_may_have_reached_backend(status));
    close(fresh);
    open_odd(odd);
    for (int i = 0; i < ODD; i++) {
        assert_invalid(handoff_raw_send(odd[i].fd, fd, &wire->token));
        assert_message_of("socket", odd[i].fd, odd[i].is);
    }
    close_odd(odd);
    assert_invalid(handoff_raw_send(wire->broker, 4711, &wire->token));
    assert_message_of("socket", wire->broker, ": descriptor 4711, which was to be sent, is not open");
    assert_ok(handoff_raw_send(wire->broker, fd, &wire->token));
}

static void receiving_and_asking_say_what_the_descriptor_is(void **state)
{
    (void)state;
    struct odd odd[ODD];
    handoff_raw_token token;
    handoff_raw_ack ack = HANDOFF_RAW_ACK_INIT;
    handoff_raw_peer peer = HANDOFF_RAW_PEER_INIT;
    int fd;
    open_odd(odd);
    for (int i = 0; i < ODD; i++) {
        assert_invalid(handoff_raw_receive(odd[i].fd, 0, &token, &fd));
        assert_message_of("socket", odd[i].fd, odd[i].is);
        assert_invalid(handoff_raw_token_receive(odd[i].fd, 0, &token));
        assert_message_of("socket", odd[i].fd, odd[i].is);
        assert_invalid(handoff_raw_ack_receive(odd[i].fd, &ack));
        assert_message_of("socket", odd[i].fd, odd[i].is);
        assert_invalid(handoff_raw_ack_accept(odd[i].fd, &(handoff_raw_token){{0}}));
        assert_message_of("socket", odd[i].fd, odd[i].is);
        assert_invalid(handoff_raw_take_back(odd[i].fd));
        assert_message_of("socket", odd[i].fd, odd[i].is);
        assert_invalid(handoff_raw_peer_credentials(odd[i].fd, &peer));
        assert_message_of("socket", odd[i].fd, odd[i].is);
    }
    close_odd(odd);
}

/* The number of a socket that the library made says nothing to the caller. */
static void calls_with_a_path_name_the_path(void **state)
{
    struct wire *wire = *state;
    struct place place = make_place();
    handoff_raw_listener *listener = listen_at(place.path, wire->type);
    handoff_raw_verdict verdict = HANDOFF_RAW_VERDICT_INIT;
    int socket;
    assert_invalid(handoff_raw_send_path(place.path, 4711, &wire->token, &socket));
    assert_last_error_has(place.path);
    assert_ok(handoff_raw_attempt_path(place.path, wire->connection, &wire->token, 1, &verdict));
    assert_int_equal(verdict.cause, HANDOFF_ERR_ACK_TIMEOUT);
    assert_last_error_has(place.path);
    assert_last_error_has("no acknowledgement by the deadline");
    handoff_raw_listener_free(listener);
    remove_directory(place.directory);
}

/* And nothing that only a programmer in Rust would know. */
static void what_the_system_says_ends_the_message_as_strerror_has_it(void **state)
{
    (void)state;
    int fd;
    char text[200];
    assert_status(handoff_raw_connect("/nonexistent/socket", &fd),
                  HANDOFF_ERR_BACKEND_UNAVAILABLE);
    assert_int_equal(errno, ENOENT);
    snprintf(text, sizeof text, ": %s", strerror(ENOENT));
    const char *said = strstr(handoff_last_error(), text);
    assert_non_null(said);
    assert_string_equal(said, text);
}

/* ---- names that others choose ----------------------------------------------------------------- */

static void assert_printable(const char *text)
{
    assert_true(*text != '\0');
    for (const char *at = text; *at != '\0'; at++)
        if ((unsigned char)*at < ' ' || *at == 0x7f)
            fail_msg("byte %#x in \"%s\"", *at, text);
}

static void name_of_a_socket_forges_no_line_and_reaches_no_terminal(void **state)
{
    (void)state;
    char directory[64], inside[80], path[112];
    handoff_broker *broker;
    handoff_backend *backend;
    handoff_broker_backend_state first = HANDOFF_BROKER_BACKEND_STATE_INIT;
    handoff_verdict verdict = HANDOFF_VERDICT_INIT;
    int client[2];
    make_directory(directory);
    snprintf(inside, sizeof inside, "%s/", directory);
    snprintf(path, sizeof path, "%s/a\n[alert] forged\x1b[2J\x7f\t\r.sock", directory);
    /* Nobody listens there. */
    struct sockaddr_un address = {.sun_family = AF_UNIX};
    snprintf(address.sun_path, sizeof address.sun_path, "%.*s", (int)sizeof address.sun_path - 1,
             path);
    int stale = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(stale, (struct sockaddr *)&address, sizeof address), 0);
    close(stale);
    make_pair(SOCK_STREAM, client);
    assert_ok(handoff_broker_new(inside, NULL, &broker));
    handoff_offer offer = offer_of(client[0]);
    assert_status(handoff_broker_offer(broker, &offer, NULL), HANDOFF_ERR_BACKEND_UNAVAILABLE);
    assert_printable(handoff_last_error());
    assert_printable(handoff_broker_last_error(broker));
    assert_last_error_has("a?[alert] forged?[2J???.sock");
    while (handoff_broker_get_backend_state(broker, 0, &first) == HANDOFF_OK && *first.message == '\0')
        assert_ok(handoff_broker_dispatch(broker));
    assert_printable(first.message);
    assert_non_null(strstr(first.message, "a?[alert] forged?[2J???.sock"));
    /* Paths are data. */
    assert_string_equal(first.path, path);

    assert_ok(handoff_backend_listen(path, NULL, &backend));
    assert_status(handoff_backend_listen(path, NULL, &backend), HANDOFF_ERR_ADDRESS_IN_USE);
    assert_printable(handoff_last_error());
    connect_broker(broker, backend);
    assert_ok(handoff_broker_offer(broker, &offer, NULL));
    handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
    int fd;
    assert_ok(handoff_backend_dispatch(backend));
    assert_ok(handoff_backend_next(backend, &arrival));
    assert_ok(handoff_backend_adopt(backend, arrival.id, &fd));
    close(fd);
    assert_ok(handoff_backend_dispatch(backend));
    assert_ok(handoff_broker_dispatch(broker));
    assert_ok(handoff_broker_next(broker, &verdict));
    assert_string_equal(verdict.backend, path);
    handoff_broker_free(broker);
    handoff_backend_free(backend);
    close(client[0]);
    close(client[1]);
    remove_directory(directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(listening_on_what_is_no_listener_names_the_callers_descriptor),
        TEST(offering_what_is_no_socket_points_to_the_raw_layer),
        TEST(offer_that_is_too_large_says_what_of_it_and_what_is_allowed),
        TEST(full_broker_says_which_limit_is_reached),
        TEST(path_that_is_too_long_is_cut_and_the_limit_named),
        TEST(broker_without_a_channel_says_why),
        TEST(shortage_of_descriptors_says_whose_limit_it_is),
        TEST(peer_that_is_not_accepted_is_said_of_the_listener),
        STREAM_TEST(token_is_not_sent_over_tcp_with_several_paths),
        WIRE_TEST(sending_over_what_cannot_carry_it_is_refused_and_sends_nothing),
        TEST(receiving_and_asking_say_what_the_descriptor_is),
        WIRE_TEST(calls_with_a_path_name_the_path),
        TEST(what_the_system_says_ends_the_message_as_strerror_has_it),
        TEST(what_the_system_says_ends_the_message_as_strerror_has_it),
        TEST(name_of_a_socket_forges_no_line_and_reaches_no_terminal),
    };
    return RUN_TESTS(tests);
}
