// The same handoff as in use.c, and an exception after it: the library's unwinder and the
// program's get along.
#include <cstdio>
#include <memory>
#include <stdexcept>
#include <string>

#include <sys/socket.h>
#include <unistd.h>

#include <handoff.h>

static void check(handoff_status status, handoff_status expected = HANDOFF_OK)
{
    if (status != expected)
        throw std::runtime_error(std::string(handoff_status_name(status)) + " instead of "
                                 + handoff_status_name(expected) + ": " + handoff_last_error());
}

static void check(bool condition, const char *what)
{
    if (!condition)
        throw std::runtime_error(what);
}

int main()
try {
    int ends[2], pipe_ends[2];
    check(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0 && pipe(pipe_ends) == 0, "no sockets");

    handoff_raw_store *made = nullptr;
    check(handoff_raw_store_new(nullptr, &made));
    std::unique_ptr<handoff_raw_store, decltype(&handoff_raw_store_free)> store(
        made, handoff_raw_store_free);

    handoff_raw_token token, presented;
    check(handoff_raw_store_issue(store.get(), &token));
    check(handoff_raw_send(ends[0], pipe_ends[1], &token));

    int adopted = -1;
    check(handoff_raw_receive_verified(ends[1], store.get(), &token, 0, &presented, &adopted));
    check(handoff_raw_ack_accept(ends[1], &presented));
    handoff_raw_ack ack = HANDOFF_RAW_ACK_INIT;
    check(handoff_raw_ack_wait(ends[0], &token, 0, &ack));
    check(ack.outcome == HANDOFF_ADOPTED, "not adopted");

    char answer = 0;
    check(write(adopted, "!", 1) == 1 && read(pipe_ends[0], &answer, 1) == 1 && answer == '!',
          "what arrived is not the pipe");

    try {
        check(handoff_raw_store_redeem(store.get(), &token));
    } catch (const std::runtime_error &) {
        return 0;
    }
    throw std::runtime_error("the token worked twice");
} catch (const std::exception &error) {
    std::fprintf(stderr, "use.cc: %s\n", error.what());
    return 1;
}
