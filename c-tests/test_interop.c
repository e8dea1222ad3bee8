/* This library and a peer in Python that does not link it, both ways round, with a TCP client.
 *
 * Run it from the root of the source tree, or name the peer in HANDOFF_PYTHON_PEER. */
#define _GNU_SOURCE
#include "wire.h"

#include <arpa/inet.h>
#include <fcntl.h>
#include <stdlib.h>
#include <string.h>

/* The peer's process and what it prints, line by line. */
struct peer {
    pid_t pid;
    FILE *output;
};

static struct peer start_peer(const char *role, const char *path)
{
    const char *python = getenv("PYTHON"), *script = getenv("HANDOFF_PYTHON_PEER");
    int output[2];
    struct peer peer;
    assert_int_equal(pipe2(output, O_CLOEXEC), 0);
    peer.pid = start_child();
    if (peer.pid == 0) {
        dup2(output[1], 1);
        execlp(python != NULL ? python : "python3", "python3",
               script != NULL ? script : "examples/python_peer.py", role, path, "1", (char *)NULL);
        _exit(127);
    }
    close(output[1]);
    peer.output = fdopen(output[0], "r");
    assert_non_null(peer.output);
    return peer;
}

static void next_line(struct peer *peer, char line[128])
{
    if (fgets(line, 128, peer->output) == NULL)
        fail_msg("the peer in Python ended without a word; is this the root of the source tree?");
    line[strcspn(line, "\n")] = '\0';
}

/* Asserts what the peer prints next, and that it then ends well. */
static void assert_ends_with(struct peer *peer, const char *expected)
{
    char line[128];
    next_line(peer, line);
    assert_string_equal(line, expected);
    fclose(peer->output);
    assert_child_succeeds(peer->pid);
}

/* Asserts all that the client gets before its connection ends, which takes both sides to close. */
static void assert_client_gets(int client, const char *expected)
{
    char answer[64] = {0};
    assert_int_equal(recv(client, answer, sizeof answer - 1, MSG_WAITALL), strlen(expected));
    assert_string_equal(answer, expected);
}

/* A peer in Python as backend, ready for one broker. */
static struct peer start_backend(const struct place *place)
{
    char line[128];
    struct peer peer = start_peer("backend", place->path);
    next_line(&peer, line);
    assert_string_equal(line, "ready");
    return peer;
}

static void python_backend_adopts_from_a_broker_in_c(void **state)
{
    struct wire *wire = *state;
    struct place place = make_place();
    struct peer peer = start_backend(&place);
    int socket;
    handoff_raw_token token;
    handoff_raw_verdict verdict = HANDOFF_RAW_VERDICT_INIT;
    assert_ok(handoff_raw_connect(place.path, &socket));
    assert_ok(handoff_raw_token_receive(socket, PATIENCE_MS, &token));
    assert_ok(handoff_raw_attempt(socket, wire->connection, &token, PATIENCE_MS, &verdict));
    assert_int_equal(verdict.outcome, HANDOFF_ADOPTED);
    close(socket);
    close_end(&wire->connection);
    assert_client_gets(wire->client, "served by the backend in Python\n");
    assert_ends_with(&peer, "adopted");
    remove_directory(place.directory);
}

static void python_backend_refuses_a_token_that_it_did_not_give(void **state)
{
    struct wire *wire = *state;
    struct place place = make_place();
    struct peer peer = start_backend(&place);
    int socket;
    handoff_raw_token token;
    handoff_raw_verdict verdict = HANDOFF_RAW_VERDICT_INIT;
    assert_ok(handoff_raw_connect(place.path, &socket));
    assert_ok(handoff_raw_token_receive(socket, PATIENCE_MS, &token));
    assert_ok(handoff_raw_attempt(socket, wire->connection, &wire->token, PATIENCE_MS, &verdict));
    assert_int_equal(verdict.outcome, HANDOFF_FALLBACK);
    assert_int_equal(verdict.cause, HANDOFF_ERR_END_OF_STREAM);
    close(socket);
    assert_ends_with(&peer, "not adopted: not a token that was given out, with one descriptor");
    assert_client_sees_end(wire);
    remove_directory(place.directory);
}

static int connect_to_port(const char *port)
{
    struct sockaddr_in address = {.sin_family = AF_INET,
                                  .sin_port = htons((uint16_t)atoi(port)),
                                  .sin_addr.s_addr = htonl(INADDR_LOOPBACK)};
    int client = socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC, 0);
    assert_int_equal(connect(client, (struct sockaddr *)&address, sizeof address), 0);
    return client;
}

/* Takes what the broker in Python offers; the client's end is in `client`. */
static struct peer take_offer(const struct wire *wire, const handoff_raw_listener *listener,
                              const struct place *place, int *client, int *socket, int *fd)
{
    char port[128];
    handoff_raw_token token;
    struct peer peer = start_peer("broker", place->path);
    next_line(&peer, port);
    *client = connect_to_port(port);
    assert_ok(handoff_raw_listener_accept(listener, NULL, PATIENCE_MS, socket));
    assert_ok(handoff_raw_token_send(*socket, &wire->token));
    assert_ok(handoff_raw_receive_verified(*socket, wire->store, NULL, PATIENCE_MS, &token, fd));
    assert_true(handoff_raw_token_equal(&token, &wire->token));
    return peer;
}

static void backend_in_c_adopts_from_a_python_broker(void **state)
{
    struct wire *wire = *state;
    struct place place = make_place();
    handoff_raw_listener *listener = listen_at(place.path, SOCK_STREAM);
    int client, socket, fd;
    struct peer peer = take_offer(wire, listener, &place, &client, &socket, &fd);
    assert_ok(handoff_raw_ack_accept(socket, &wire->token));
    assert_int_equal(write(fd, "served by the backend in C\n", 27), 27);
    close(fd);
    close(socket);
    assert_client_gets(client, "served by the backend in C\n");
    assert_ends_with(&peer, "adopted");
    close(client);
    handoff_raw_listener_free(listener);
    remove_directory(place.directory);
}

static void python_broker_serves_what_a_backend_in_c_rejects(void **state)
{
    struct wire *wire = *state;
    struct place place = make_place();
    handoff_raw_listener *listener = listen_at(place.path, SOCK_STREAM);
    int client, socket, fd;
    struct peer peer = take_offer(wire, listener, &place, &client, &socket, &fd);
    close(fd);
    assert_ok(handoff_raw_ack_reject(socket, &wire->token, HANDOFF_REASON_BACKEND_BUSY));
    close(socket);
    assert_client_gets(client, "served by the broker in Python\n");
    assert_ends_with(&peer, "fallback");
    close(client);
    handoff_raw_listener_free(listener);
    remove_directory(place.directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        STREAM_TEST(python_backend_adopts_from_a_broker_in_c),
        STREAM_TEST(python_backend_refuses_a_token_that_it_did_not_give),
        STREAM_TEST(backend_in_c_adopts_from_a_python_broker),
        STREAM_TEST(python_broker_serves_what_a_backend_in_c_rejects),
    };
    return RUN_TESTS(tests);
}
