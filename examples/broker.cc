// broker: accepts TCP clients on 127.0.0.1, reads what each asks and hands it with its connection to
// the backend that listens on a handoff socket. It serves itself what the backend does not adopt,
// and the client does not notice.
//
//   c++ -std=c++17 broker.cc $(pkg-config --cflags --libs handoff) -o broker
//   ./broker PORT SOCKET [TIMEOUT_MS [FAILURE_PERIOD_MS]]
//
// An event loop that never blocks. TIMEOUT_MS is how long an offer may wait for its verdict,
// FAILURE_PERIOD_MS how long a failure counts: after 8, the backend is not tried for a while.
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>

#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>

#include <handoff.hpp>

using std::chrono::milliseconds;
using std::chrono::steady_clock;

namespace {

constexpr milliseconds time_to_ask{1000};

struct client;
using client_list = std::list<std::unique_ptr<client>>;

struct client {
    handoff::unique_fd fd;
    steady_clock::time_point deadline;  // by when it must have asked
    client_list::iterator place;        // in broker::silent_
};

// For what can only fail by a mistake in this program, or when the system has nothing left.
void check(bool ok, const char *what)
{
    if (!ok)
        throw std::system_error(errno, std::generic_category(), what);
}

class broker {
  public:
    broker(unsigned short port, const char *path, const handoff::broker_options &options)
        : backend_(path, options)
    {
        sigset_t stop;
        sigemptyset(&stop);
        sigaddset(&stop, SIGTERM);
        sigaddset(&stop, SIGINT);
        check(sigprocmask(SIG_BLOCK, &stop, nullptr) == 0, "sigprocmask");
        signals_.reset(signalfd(-1, &stop, SFD_CLOEXEC));
        listen(port);
        watch(signals_.get(), &signals_);
        watch(listener_.get(), &listener_);
        watch(backend_.fd(), &backend_);
    }

    void run()
    {
        for (bool stopping = false; !stopping;) {
            epoll_event events[64];
            const int count = epoll_wait(epoll_.get(), events, 64, expire());
            check(count != -1 || errno == EINTR, "epoll_wait");
            for (int i = 0; i < count; i++) {
                void *const what = events[i].data.ptr;
                if (what == &signals_)
                    stopping = true;
                else if (what == &listener_)
                    accept_clients();
                else if (what == &backend_)
                    backend_.dispatch();
                else
                    offer(*static_cast<client *>(what));
            }
            backend_.flush();
            take_verdicts();
        }
        // Takes back what is still in flight. The verdicts for that are there at once.
        backend_.close();
        take_verdicts();
        std::printf("connections: %lu\nadopted: %lu\n", connections_, adopted_);
        for (const auto &[what, count] : not_adopted_)
            std::printf("%s: %lu\n", what.c_str(), count);
    }

  private:
    void listen(unsigned short port)
    {
        sockaddr_in address{};
        address.sin_family = AF_INET;
        address.sin_port = htons(port);
        address.sin_addr.s_addr = htonl(INADDR_LOOPBACK);
        auto *const any = reinterpret_cast<sockaddr *>(&address);
        socklen_t len = sizeof address;
        const int yes = 1;
        listener_.reset(socket(AF_INET, SOCK_STREAM | SOCK_CLOEXEC | SOCK_NONBLOCK, 0));
        const int fd = listener_.get();
        check(setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) == 0
                  && bind(fd, any, len) == 0 && ::listen(fd, 1024) == 0
                  && getsockname(fd, any, &len) == 0,
              "listen");
        std::printf("listening on 127.0.0.1:%d\n", ntohs(address.sin_port));
        std::fflush(stdout);
    }

    void watch(int fd, void *what)
    {
        epoll_event event{};
        event.events = EPOLLIN;
        event.data.ptr = what;
        check(epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0, "EPOLL_CTL_ADD");
    }

    void accept_clients()
    {
        // If there is no descriptor for a client, the next turn tries again.
        while (handoff::unique_fd fd{
            accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK)}) {
            auto &added = silent_.emplace_back(std::make_unique<client>());
            added->fd = std::move(fd);
            added->deadline = steady_clock::now() + time_to_ask;
            added->place = std::prev(silent_.end());
            watch(added->fd.get(), added.get());
        }
    }

    // A client has something to say, or its time is up. It leaves the event loop before it is
    // offered: once another process has a copy, closing ours would not take it out.
    std::unique_ptr<client> stop_watching(client &found)
    {
        check(epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, found.fd.get(), nullptr) == 0,
              "EPOLL_CTL_DEL");
        auto owner = std::move(*found.place);
        silent_.erase(owner->place);
        return owner;
    }

    // Reads what a client asks, in one piece for this example, and offers it with the connection.
    void offer(client &asking)
    {
        char request[4096];
        const ssize_t len = recv(asking.fd.get(), request, sizeof request, 0);
        if (len == -1 && (errno == EAGAIN || errno == EINTR))
            return;
        auto owner = stop_watching(asking);
        if (len <= 0)
            return;  // it has gone
        connections_++;

        handoff::offer offer;
        offer.fd = owner->fd.get();
        offer.preread = {request, static_cast<std::size_t>(len)};
        offer.more = true;  // flush() sends those of this turn together
        if (const auto offered = backend_.offer(offer, owner.get())) {
            owner.release();  // take_verdicts() gets it back
        } else {
            not_adopted_[std::string("refused, ") + name(offered.reason)]++;
            serve(*owner);
        }
    }

    void take_verdicts()
    {
        for (const auto &verdict : backend_.verdicts()) {
            const std::unique_ptr<client> owner(verdict.user_data);
            if (verdict.adopted) {
                adopted_++;  // close() only: shutdown() would end the backend's connection too
            } else {
                not_adopted_[std::string("fallback, ") + name(verdict.reason)]++;
                serve(*owner);
            }
        }
    }

    // The other way to serve a client, which has asked.
    static void serve(const client &asking)
    {
        constexpr std::string_view answer = "HTTP/1.0 200 OK\r\nContent-Length: 21\r\n\r\n"
                                            "served by the broker\n";
        if (send(asking.fd.get(), answer.data(), answer.size(), MSG_NOSIGNAL)
            != static_cast<ssize_t>(answer.size()))
            std::perror("broker: answering a client");
        // The backend may hold a copy that it cannot use. While that is open, close() alone does
        // not end the connection.
        shutdown(asking.fd.get(), SHUT_WR);
    }

    // Closes clients that do not ask. Returns the milliseconds until the next one's time is up.
    int expire()
    {
        const auto now = steady_clock::now();
        while (!silent_.empty() && silent_.front()->deadline <= now)
            stop_watching(*silent_.front());
        if (silent_.empty())
            return -1;
        const auto left = std::chrono::ceil<milliseconds>(silent_.front()->deadline - now);
        return static_cast<int>(left.count());
    }

    handoff::broker<client> backend_;
    handoff::unique_fd epoll_{epoll_create1(EPOLL_CLOEXEC)};
    handoff::unique_fd signals_, listener_;
    client_list silent_;  // have not asked yet, in the order of their deadlines
    unsigned long connections_ = 0, adopted_ = 0;
    std::map<std::string, unsigned long> not_adopted_;
};

}  // namespace

int main(int argc, char **argv)
try {
    if (argc < 3 || argc > 5) {
        std::fputs("usage: broker PORT SOCKET [TIMEOUT_MS [FAILURE_PERIOD_MS]]\n", stderr);
        return 2;
    }
    handoff::broker_options options;
    if (argc > 3)
        options.timeout = milliseconds(std::atol(argv[3]));
    if (argc > 4)
        options.failure_period = milliseconds(std::atol(argv[4]));
    broker(static_cast<unsigned short>(std::atoi(argv[1])), argv[2], options).run();
    return 0;
} catch (const std::exception &error) {
    std::fprintf(stderr, "broker: %s\n", error.what());
    return 1;
}
