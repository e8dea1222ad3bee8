// backend: listens on a handoff socket, adopts the clients that brokers hand over, and answers each
// on the client's own connection.
//
//   c++ -std=c++17 backend.cc $(pkg-config --cflags --libs handoff) -o backend
//   ./backend SOCKET
//
// An event loop that never blocks. SIGTERM lets it finish what it has adopted. The broker serves the
// others.
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <exception>
#include <list>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>

#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <handoff.hpp>

using std::chrono::milliseconds;
using std::chrono::steady_clock;

namespace {

constexpr milliseconds time_to_ask{1000};
constexpr std::size_t most_clients = 1024, longest_request = 4096;

struct client;
using client_list = std::list<std::unique_ptr<client>>;

struct client {
    handoff::unique_fd fd;
    steady_clock::time_point deadline;  // by when it must have asked
    client_list::iterator place;        // in backend::clients_
    std::string request;
};

// For what can only fail by a mistake in this program, or when the system has nothing left.
void check(bool ok, const char *what)
{
    if (!ok)
        throw std::system_error(errno, std::generic_category(), what);
}

class backend {
  public:
    explicit backend(const char *path) : brokers_(handoff::backend::listen(path))
    {
        sigset_t stop;
        sigemptyset(&stop);
        sigaddset(&stop, SIGTERM);
        sigaddset(&stop, SIGINT);
        check(sigprocmask(SIG_BLOCK, &stop, nullptr) == 0, "sigprocmask");
        signals_.reset(signalfd(-1, &stop, SFD_CLOEXEC));
        watch(signals_.get(), &signals_);
        watch(brokers_.fd(), &brokers_);
        std::printf("listening on %s\n", path);
        std::fflush(stdout);
    }

    void run()
    {
        while (brokers_ || !clients_.empty()) {
            epoll_event events[64];
            const int count = epoll_wait(epoll_.get(), events, 64, expire());
            check(count != -1 || errno == EINTR, "epoll_wait");
            bool arrived = false, stopping = false;
            for (int i = 0; i < count; i++) {
                void *const what = events[i].data.ptr;
                if (what == &signals_)
                    stopping = true;
                else if (what == &brokers_)
                    arrived = true;
                else
                    read_request(*static_cast<client *>(what));
            }
            if (stopping)
                brokers_.drain();
            if (arrived || stopping) {
                brokers_.dispatch();
                adopt_arrivals();
            }
            if (stopping) {
                // Nothing is held. The brokers take back what comes from now on.
                brokers_ = handoff::backend();
                signals_.reset();
            }
        }
        std::printf("adopted: %lu\nanswered: %lu\n", adopted_, answered_);
    }

  private:
    void watch(int fd, void *what)
    {
        epoll_event event{};
        event.events = EPOLLIN;
        event.data.ptr = what;
        check(epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0, "EPOLL_CTL_ADD");
    }

    // Prepares all that a client needs before it adopts: afterwards the broker cannot help any
    // more. An arrival that is not adopted, such as after an exception, rejects itself.
    void adopt_arrivals()
    {
        for (auto &arrival : brokers_.arrivals()) {
            if (clients_.size() == most_clients || arrival.preread().size() > longest_request) {
                arrival.reject(handoff::reason::backend_busy);
                continue;
            }
            auto added = std::make_unique<client>();
            added->request = arrival.preread();  // comes before what is read from the socket
            added->deadline = steady_clock::now() + time_to_ask;
            added->fd = arrival.adopt();
            if (!added->fd)
                continue;  // the broker took it back, and serves it
            adopted_++;
            auto &kept = *clients_.emplace_back(std::move(added));
            kept.place = std::prev(clients_.end());
            watch(kept.fd.get(), &kept);
            answer_if_complete(kept);
        }
    }

    void read_request(client &asking)
    {
        // The broker's copy shares O_NONBLOCK, so that stays as it is.
        char part[longest_request];
        const ssize_t len = recv(asking.fd.get(), part, sizeof part, MSG_DONTWAIT);
        if (len == -1 && (errno == EAGAIN || errno == EINTR))
            return;
        if (len <= 0 || asking.request.size() + static_cast<std::size_t>(len) > longest_request)
            return end(asking);  // it has gone, or asks too much
        asking.request.append(part, static_cast<std::size_t>(len));
        answer_if_complete(asking);
    }

    void answer_if_complete(client &asking)
    {
        constexpr std::string_view end_of_request = "\r\n\r\n";
        const std::string_view request = asking.request;
        if (request.size() < end_of_request.size()
            || request.substr(request.size() - end_of_request.size()) != end_of_request)
            return;
        const std::string body = "served by the backend " + std::to_string(getpid()) + "\n";
        const std::string answer = "HTTP/1.0 200 OK\r\nContent-Length: "
            + std::to_string(body.size()) + "\r\n\r\n" + body;
        answered_ += send(asking.fd.get(), answer.data(), answer.size(),
                          MSG_DONTWAIT | MSG_NOSIGNAL)
            == static_cast<ssize_t>(answer.size());
        end(asking);
    }

    // The broker may not have closed its copy yet. While that is open, close() does not end the
    // connection, and does not take it out of the event loop.
    void end(client &served)
    {
        check(epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, served.fd.get(), nullptr) == 0,
              "EPOLL_CTL_DEL");
        shutdown(served.fd.get(), SHUT_WR);
        clients_.erase(served.place);
    }

    // Ends clients whose time is up. Returns the milliseconds until that of the next one, or -1.
    int expire()
    {
        const auto now = steady_clock::now();
        while (!clients_.empty() && clients_.front()->deadline <= now)
            end(*clients_.front());
        if (clients_.empty())
            return -1;
        const auto left = std::chrono::ceil<milliseconds>(clients_.front()->deadline - now);
        return static_cast<int>(left.count());
    }

    handoff::backend brokers_;
    handoff::unique_fd epoll_{epoll_create1(EPOLL_CLOEXEC)};
    handoff::unique_fd signals_;
    client_list clients_;  // have not asked all of it yet, in the order of their deadlines
    unsigned long adopted_ = 0, answered_ = 0;
};

}  // namespace

int main(int argc, char **argv)
try {
    if (argc != 2) {
        std::fputs("usage: backend SOCKET\n", stderr);
        return 2;
    }
    backend(argv[1]).run();
    return 0;
} catch (const std::exception &error) {
    std::fprintf(stderr, "backend: %s\n", error.what());
    return 1;
}
