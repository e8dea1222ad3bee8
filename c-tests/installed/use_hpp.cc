// Hands a connection from a broker to a backend with handoff.hpp, against an installed copy of the
// library, and lets one arrival reject itself.
#include <cstdio>
#include <exception>
#include <stdexcept>
#include <string>

#include <poll.h>
#include <sys/socket.h>
#include <unistd.h>

#include <handoff.hpp>

static void check(bool condition, const char *what)
{
    if (!condition)
        throw std::runtime_error(what);
}

int main()
try {
    const std::string path = "@handoff-use-hpp-" + std::to_string(getpid());
    auto backend = handoff::backend::listen(path.c_str());
    handoff::broker<int> broker(path.c_str());
    int ends[2];
    check(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0, "no sockets");
    const handoff::unique_fd server(ends[0]), client(ends[1]);

    handoff::offer offer;
    offer.fd = server.get();
    offer.preread = "hello";
    check(broker.offer(offer).reason == handoff::reason::backend_unavailable,
          "an offer before the channel is set up");
    while (broker.statistics().connects == 0) {
        backend.dispatch();
        pollfd watched{broker.fd(), POLLIN, 0};
        check(poll(&watched, 1, 20000) == 1, "no channel");
        broker.dispatch();
    }

    int numbers[2] = {1, 2};
    for (int &number : numbers)
        check(bool(broker.offer(offer, &number)), "not offered");
    backend.dispatch();
    handoff::unique_fd adopted;
    for (auto &arrival : backend.arrivals())
        if (!adopted && arrival.preread() == "hello")
            adopted = arrival.adopt();
    char answer = 0;
    check(write(adopted.get(), "!", 1) == 1 && read(client.get(), &answer, 1) == 1, "not adopted");

    broker.dispatch();
    int told = 0;
    for (const auto &verdict : broker.verdicts()) {
        check(verdict.adopted == (*verdict.user_data == 1), "a wrong verdict");
        check(verdict.adopted || verdict.reason == handoff::reason::backend_busy, "a wrong reason");
        told++;
    }
    check(told == 2, "not two verdicts");
    try {
        (void)handoff::backend::listen(path.c_str());
    } catch (const std::system_error &error) {
        check(error.code() == handoff::errc::address_in_use, error.what());
        return 0;
    }
    throw std::runtime_error("two backends listen");
} catch (const std::exception &error) {
    std::fprintf(stderr, "use_hpp.cc: %s\n", error.what());
    return 1;
}
