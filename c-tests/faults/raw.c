/*
 * raw.c: the raw layer.
 *
 * The backend sends tokens over the connection on which the broker then makes its attempts: one is
 * accepted, one rejected, one not answered before its deadline. The fourth has a connection of its
 * own, and a token that the broker made and the backend has been told.
 */
#define _GNU_SOURCE
#include "scene.h"

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

/* ---- the broker ----------------------------------------------------------------------------- */

/** A connection over which the broker has been given a token; -1 if that failed. */
static int connect_for(handoff_raw_token *token)
{
    int socket = -1;
    handoff_raw_peer peer = HANDOFF_RAW_PEER_INIT;
    scene->token_is_told = 0;
    if (CALL(handoff_raw_connect(scene->path, &socket)) != HANDOFF_OK)
        return -1;
    if (CALL(handoff_raw_peer_check(socket, NULL, &peer)) == HANDOFF_OK &&
        CALL(handoff_raw_token_receive(socket, 1000, token)) == HANDOFF_OK)
        return socket;
    close(socket);
    return -1;
}

/** One attempt; false if it is to be repeated, on another connection. */
static bool attempt(uint32_t number, int fd, int socket, const handoff_raw_token *token,
                    uint64_t timeout_ms, bool *is_adopted)
{
    handoff_raw_verdict verdict = HANDOFF_RAW_VERDICT_INIT;
    if (number != PROBE)
        scene->connections[number].offered = 1;
    handoff_status status =
        socket == -1
            ? CALL(handoff_raw_attempt_path(scene->path, fd, token, timeout_ms, &verdict))
            : CALL(handoff_raw_attempt(socket, fd, token, timeout_ms, &verdict));
    if (socket != -1)
        close(socket);
    if (status != HANDOFF_OK)
        return false;
    *is_adopted = verdict.outcome == HANDOFF_ADOPTED;
    check(*is_adopted || verdict.outcome == HANDOFF_FALLBACK);
    check(*is_adopted || verdict.reason != HANDOFF_REASON_NONE);
    if (verdict.cause != HANDOFF_OK)
        check_cause(verdict.cause);
    bool is_known = !*is_adopted || verdict.reason == HANDOFF_REASON_NONE;
    check(is_known || scene->injected != 0);
    if (number != PROBE)
        settle(number, !is_known ? UNKNOWN : *is_adopted ? ADOPTED : FALLBACK,
               verdict.may_have_reached_backend);
    return true;
}

static bool attempt_over_socket(uint32_t number, int fd, uint64_t timeout_ms)
{
    bool is_adopted = false;
    for (;;) {
        handoff_raw_token token;
        int socket = connect_for(&token);
        if (socket == -1)
            pause_shortly();
        else if (attempt(number, fd, socket, &token, timeout_ms, &is_adopted))
            return is_adopted;
    }
}

static bool attempt_over_path(uint32_t number, int fd)
{
    bool is_adopted = false;
    do {
        while (CALL(handoff_raw_token_generate(&scene->token)) != HANDOFF_OK)
            check(scene->injected != 0);
        scene->token_is_told = 1;
    } while (!attempt(number, fd, -1, &scene->token, scene->timeout_ms, &is_adopted));
    return is_adopted;
}

static bool probe(void)
{
    int client, fd = begin_probe(&client);
    return end_probe(client, fd, attempt_over_socket(PROBE, fd, scene->timeout_ms));
}

static void run_broker(void)
{
    uint32_t base = scene->base;
    while (!scene->listening)
        pause_shortly();
    attempt_over_socket(base, FIRST_FD, scene->timeout_ms);
    attempt_over_socket(base + 1, FIRST_FD + 1, scene->timeout_ms);
    attempt_over_socket(base + 2, FIRST_FD + 2, 10);
    attempt_over_path(base + 3, FIRST_FD + 3);
    while (!probe())
        ;
    check(open_descriptors() == 0);
}

/* ---- the backend ---------------------------------------------------------------------------- */

static handoff_raw_listener *listener;
static handoff_raw_store *store;

static void accept_message(int socket, const handoff_raw_token *token, int fd, uint32_t number)
{
    if (number != PROBE && raw_scenario.wishes[number % CONNECTIONS] == HOLD)
        while (!is_decided(number))
            pause_shortly();
    adopting(number);
    handoff_status status = CALL(handoff_raw_ack_accept(socket, token));
    adopted(number, fd, status == HANDOFF_OK);
    /* After an error it is not this process's. */
    if (status != HANDOFF_OK)
        check(close(fd) == 0);
}

static void serve(int socket)
{
    handoff_raw_token token;
    int fd = -1;
    if (scene->token_is_told) {
        handoff_status status = CALL(handoff_raw_store_insert(store, &scene->token));
        check(status == HANDOFF_OK || status == HANDOFF_ERR_TOKEN_ALREADY_PENDING);
    } else if (CALL(handoff_raw_store_issue(store, &token)) != HANDOFF_OK ||
               CALL(handoff_raw_token_send(socket, &token)) != HANDOFF_OK) {
        return;
    }
    if (CALL(handoff_raw_receive_verified(socket, store, NULL, 1000, &token, &fd)) != HANDOFF_OK)
        return;
    uint32_t number = number_of(fd);
    if (number != PROBE)
        scene->connections[number].seen = 1;
    if (number == PROBE || raw_scenario.wishes[number % CONNECTIONS] != REJECT) {
        accept_message(socket, &token, fd, number);
        return;
    }
    check(close(fd) == 0);
    (void)CALL(handoff_raw_ack_reject(socket, &token, HANDOFF_REASON_REJECTED));
}

static void turn(void)
{
    /* One that nobody is in: the peer's groups are looked at. */
    const uint32_t groups[] = {12345, getgid()};
    handoff_peer_policy policy = HANDOFF_PEER_POLICY_INIT;
    policy.groups = groups;
    policy.groups_len = 2;
    int socket;
    if (CALL(handoff_raw_listener_accept(listener, &policy, 5, &socket)) != HANDOFF_OK)
        return;
    serve(socket);
    check(close(socket) == 0);
}

static void run_backend(void)
{
    handoff_raw_listener_options options = HANDOFF_RAW_LISTENER_OPTIONS_INIT;
    options.socket_type = HANDOFF_RAW_SEQPACKET;
    while (CALL(handoff_raw_store_new(NULL, &store)) != HANDOFF_OK)
        check(scene->injected != 0);
    while (CALL(handoff_raw_listener_new(scene->path, &options, &listener)) != HANDOFF_OK)
        pause_shortly();
    scene->listening = 1;
    while (!scene->finish)
        turn();
    check_idle(turn);
    CALL_VOID(handoff_raw_listener_free(listener));
    CALL_VOID(handoff_raw_store_free(store));
    check(open_descriptors() == 0);
}

const struct scenario raw_scenario = {
    "raw", run_broker, run_backend, {ADOPT, REJECT, HOLD, ADOPT}};
