/*
 * backend: listens on a handoff socket, adopts the clients that brokers offer, and answers each
 * client on its own connection.
 *
 *   c++ -std=c++17 backend.cc $(pkg-config --cflags --libs handoff) -o backend
 *   ./backend SOCKET
 *
 * An event loop that never blocks. After SIGTERM it finishes the clients that it has adopted. The
 * brokers serve all others.
 */
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdio>
#include <exception>
#include <iterator>
#include <list>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>
#include <unistd.h>

#include <handoff.hpp>

using std::chrono::milliseconds;
using std::chrono::steady_clock;

namespace {

constexpr milliseconds request_time{1000};
constexpr std::size_t most_clients = 1024, longest_request = 4096;

struct client;
using client_list = std::list<std::unique_ptr<client>>;

struct client {
    handoff::unique_fd fd;
    steady_clock::time_point deadline;  // for the rest of its request
    client_list::iterator place;        // in backend::clients_
    std::string request;
};

/* Throws if a system call failed that cannot fail in normal operation. */
void check(bool ok, const char *call)
{
    if (!ok)
        throw std::system_error(errno, std::generic_category(), call);
}

class backend {
  public:
    explicit backend(const char *path) : brokers_(handoff::backend::listen(path))
    {
        take_signals();
        epoll_.reset(epoll_create1(EPOLL_CLOEXEC));
        check(bool(epoll_), "epoll_create1");
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
            bool stopping = false;
            for (int i = 0; i < count; i++) {
                void *const what = events[i].data.ptr;
                if (what == &signals_)
                    stopping = true;
                else if (what == &brokers_)
                    dispatch();
                else
                    read_request(*static_cast<client *>(what));
            }
            if (stopping)
                drain();
        }
        std::printf("adopted: %lu\nanswered: %lu\n", adopted_, answered_);
    }

  private:
    /* SIGTERM and SIGINT are events, too. */
    void take_signals()
    {
        sigset_t stop;
        sigemptyset(&stop);
        sigaddset(&stop, SIGTERM);
        sigaddset(&stop, SIGINT);
        check(sigprocmask(SIG_BLOCK, &stop, nullptr) == 0, "sigprocmask");
        signals_.reset(signalfd(-1, &stop, SFD_CLOEXEC));
        check(bool(signals_), "signalfd");
    }

    /* Watches a descriptor. Its events carry `what`: a client, or the address of a member. */
    void watch(int fd, void *what)
    {
        epoll_event event{};
        event.events = EPOLLIN;
        event.data.ptr = what;
        check(epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0, "EPOLL_CTL_ADD");
    }

    void dispatch()
    {
        std::error_code error;
        brokers_.dispatch(error);
        if (error)
            std::fprintf(stderr, "backend: %s\n", brokers_.last_error());  // the next one tries again
        for (auto &arrival : brokers_.arrivals()) {
            if (clients_.size() == most_clients)
                arrival.reject(handoff::reason::backend_busy);
            else if (arrival.preread().size() <= longest_request)
                adopt(arrival);
            // Otherwise the arrival is left, and rejects itself.
        }
    }

    /* Prepares what may fail before it adopts. If that throws, the arrival rejects itself, and the
     * broker serves the client. */
    void adopt(handoff::arrival &arrival)
    {
        auto added = std::make_unique<client>();
        added->deadline = steady_clock::now() + request_time;
        // What the broker has read comes before what can still be read.
        added->request = arrival.preread();
        added->fd = arrival.adopt();
        if (!added->fd)
            return;  // the broker took it back, and serves it
        adopted_++;
        auto &asking = *clients_.emplace_back(std::move(added));
        asking.place = std::prev(clients_.end());
        watch(asking.fd.get(), &asking);
        answer_if_complete(asking);
    }

    /* The broker's copy shares O_NONBLOCK, so this program leaves it and says MSG_DONTWAIT. */
    void read_request(client &asking)
    {
        char part[longest_request];
        const ssize_t len = recv(asking.fd.get(), part, longest_request - asking.request.size(),
                                 MSG_DONTWAIT);
        if (len == -1 && errno == EAGAIN)
            return;
        if (len <= 0)
            return end(asking);  // it has gone, or its request is too long
        asking.request.append(part, static_cast<std::size_t>(len));
        answer_if_complete(asking);
    }

    /* Answers a client if its request is complete, and ends it. */
    void answer_if_complete(client &asking)
    {
        constexpr std::string_view last = "\r\n\r\n";
        const std::string &request = asking.request;
        if (request.size() < last.size() || request.rfind(last) != request.size() - last.size())
            return;
        const std::string body = "served by the backend " + std::to_string(getpid()) + "\n";
        const std::string answer = "HTTP/1.0 200 OK\r\nContent-Length: "
            + std::to_string(body.size()) + "\r\n\r\n" + body;
        if (send(asking.fd.get(), answer.data(), answer.size(), MSG_DONTWAIT | MSG_NOSIGNAL)
            == static_cast<ssize_t>(answer.size()))
            answered_++;
        else
            std::perror("backend: answering a client");
        end(asking);
    }

    /* Ends a client. The broker may not have closed its copy yet, and while it has one, close(2)
     * neither takes the descriptor out of the event loop, epoll(7), nor ends the connection. */
    void end(client &served)
    {
        check(epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, served.fd.get(), nullptr) == 0,
              "EPOLL_CTL_DEL");
        shutdown(served.fd.get(), SHUT_WR);
        clients_.erase(served.place);
    }

    /* Ends clients that sent no request in time. Returns the milliseconds until the next deadline,
     * or -1 if there is none. */
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

    /* Stops listening, and adopts what has arrived. Then the backend holds nothing and can be
     * destroyed, and brokers take back what was still on its way. */
    void drain()
    {
        brokers_.drain();
        dispatch();
        brokers_ = {};
        signals_.reset();
    }

    handoff::backend brokers_;
    handoff::unique_fd epoll_, signals_;
    client_list clients_;  // without a complete request yet, the earliest deadline first
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
