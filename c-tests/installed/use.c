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

    handoff_token_store_options options = HANDOFF_TOKEN_STORE_OPTIONS_INIT;
    options.capacity = 1;
    handoff_token_store *store;
    handoff_token token;
    if (handoff_token_store_new(&options, &store) != HANDOFF_OK
        || handoff_token_store_issue(store, &token) != HANDOFF_OK)
        return failed("no token");
    if (handoff_send(broker, pipe_ends[1], &token) != HANDOFF_OK)
        return failed("not sent");
    close(pipe_ends[1]);

    handoff_token presented;
    int adopted;
    if (handoff_receive_verified(backend, 0, store, NULL, &presented, &adopted) != HANDOFF_OK)
        return failed("not received");
    if (handoff_ack_accept(backend, &presented) != HANDOFF_OK)
        return failed("not accepted");

    handoff_ack ack;
    if (handoff_ack_wait(broker, &token, 0, &ack) != HANDOFF_OK)
        return failed("not acknowledged");
    if (ack.outcome != HANDOFF_ADOPTED || !handoff_token_equal(&ack.token, &token))
        return failed("wrong acknowledgement");

    char answer[2];
    if (write(adopted, "hi", 2) != 2 || read(pipe_ends[0], answer, 2) != 2
        || memcmp(answer, "hi", 2) != 0)
        return failed("what arrived is not the pipe");

    if (handoff_send(broker, adopted, &token) != HANDOFF_OK
        || handoff_receive_verified(backend, 0, store, NULL, NULL, &adopted)
            != HANDOFF_ERR_TOKEN_NOT_PENDING)
        return failed("the token worked twice");

    if (strcmp(handoff_version(), HANDOFF_VERSION) != 0)
        return failed("the library is of another version than the header");
    handoff_token_store_free(store);
    return 0;
}
