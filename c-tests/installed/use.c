/*
 * Hands the writing end of a pipe from one end of a socket pair to the other and checks every
 * answer, against an installed copy of the library.
 */
#include <stdio.h>
#include <string.h>
#include <sys/socket.h>
#include <unistd.h>

#include <handoff.h>

static int failed(const char *what)
{
    fprintf(stderr, "use.c: %s: %s\n", what, handoff_last_error());
    return 1;
}

int main(void)
{
    int ends[2], pipe_ends[2];
    if (socketpair(AF_UNIX, SOCK_SEQPACKET, 0, ends) != 0 || pipe(pipe_ends) != 0) {
        perror("use.c");
        return 1;
    }
    const int broker = ends[0], backend = ends[1];

    handoff_raw_store_options options = HANDOFF_RAW_STORE_OPTIONS_INIT;
    options.capacity = 1;
    handoff_raw_store *store;
    handoff_raw_token token;
    if (handoff_raw_store_new(&options, &store) != HANDOFF_OK
        || handoff_raw_store_issue(store, &token) != HANDOFF_OK)
        return failed("no token");
    if (handoff_raw_send(broker, pipe_ends[1], &token) != HANDOFF_OK)
        return failed("not sent");
    close(pipe_ends[1]);

    handoff_raw_token presented;
    int adopted;
    if (handoff_raw_receive_verified(backend, store, NULL, 0, &presented, &adopted) != HANDOFF_OK)
        return failed("not received");
    if (handoff_raw_ack_accept(backend, &presented) != HANDOFF_OK)
        return failed("not accepted");

    handoff_raw_ack ack = HANDOFF_RAW_ACK_INIT;
    if (handoff_raw_ack_wait(broker, &token, 0, &ack) != HANDOFF_OK)
        return failed("not acknowledged");
    if (ack.outcome != HANDOFF_ADOPTED || !handoff_raw_token_equal(&ack.token, &token))
        return failed("wrong acknowledgement");

    char answer[2];
    if (write(adopted, "hi", 2) != 2 || read(pipe_ends[0], answer, 2) != 2
        || memcmp(answer, "hi", 2) != 0)
        return failed("what arrived is not the pipe");

    if (handoff_raw_send(broker, adopted, &token) != HANDOFF_OK
        || handoff_raw_receive_verified(backend, store, NULL, 0, NULL, &adopted)
            != HANDOFF_ERR_TOKEN_NOT_PENDING)
        return failed("the token worked twice");

    if (strcmp(handoff_version(), HANDOFF_VERSION) != 0)
        return failed("the library is of another version than the header");
    handoff_raw_store_free(store);
    return 0;
}
