/*
 * broker: accepts TCP clients on 127.0.0.1, reads each client's request, and offers the connection
 * with the request to the backend that listens on a handoff socket, or to the backends in a
 * directory. It serves a client itself if none of them adopts it.
 *
 *   c++ -std=c++17 broker.cc $(pkg-config --cflags --libs handoff) -o broker
 *   ./broker PORT SOCKET|DIRECTORY/ [TIMEOUT_MS [FAILURE_PERIOD_MS]]
 *
 * An event loop that never blocks. While as many offers are in flight as there may be, clients wait
 * in a queue, for a second at most. An offer waits TIMEOUT_MS for its verdict. After 8 timeouts
 * within FAILURE_PERIOD_MS the backend rests, but for a trial now and then. SIGTERM ends the
 * program, which prints what became of the connections.
 */
#include <algorithm>
#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <iterator>
#include <list>
#include <map>
#include <memory>
#include <string>
#include <string_view>
#include <system_error>
#include <thread>
#include <utility>

#include <netinet/in.h>
#include <sys/epoll.h>
#include <sys/signalfd.h>
#include <sys/socket.h>

#include <handoff.hpp>

using std::chrono::milliseconds;
using std::chrono::steady_clock;

namespace {

constexpr milliseconds request_time{1000}, queue_time{1000};

struct client;
using client_list = std::list<std::unique_ptr<client>>;

struct client {
    handoff::unique_fd fd;
    steady_clock::time_point deadline;  // for its request, or in the queue
    client_list::iterator place;        // in broker::waiting_
    std::string request;
};

/* Throws if a system call failed that cannot fail in normal operation. */
void check(bool ok, const char *call)
{
    if (!ok)
        throw std::system_error(errno, std::generic_category(), call);
}

class broker {
  public:
    broker(std::uint16_t port, const char *path, const handoff::broker_options &options)
        : backend_(path, options)
    {
        take_signals();
        epoll_.reset(epoll_create1(EPOLL_CLOEXEC));
        check(bool(epoll_), "epoll_create1");
        watch(signals_.get(), &signals_);
        watch(backend_.fd(), &backend_);  // it connects, and reconnects by itself
        listen_tcp(port);
        watch(listener_.get(), &listener_);
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
                    dispatch();
                else
                    read_request(*static_cast<client *>(what));
            }
            take_verdicts();
            offer_queue();
            std::error_code error;
            backend_.flush(error);
            complain(error);
        }
        // This takes back what the backend has not adopted, so every offer has its verdict now.
        backend_.close();
        take_verdicts();
        serve_queue(steady_clock::time_point::max());

        std::printf("connections: %lu\nadopted: %lu\n", connections_, adopted_);
        for (const auto &[reason, count] : fallbacks_)
            std::printf("fallback, %s: %lu\n", name(reason), count);
    }

  private:
    /* After an error the next dispatch or flush tries again: it costs no client. */
    void complain(const std::error_code &error)
    {
        if (error)
            std::fprintf(stderr, "broker: %s\n", backend_.last_error());
    }

    void dispatch()
    {
        std::error_code error;
        backend_.dispatch(error);
        complain(error);
    }

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

    void listen_tcp(std::uint16_t port)
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
        check(fd != -1 && setsockopt(fd, SOL_SOCKET, SO_REUSEADDR, &yes, sizeof yes) == 0
                  && bind(fd, any, len) == 0 && listen(fd, 1024) == 0
                  && getsockname(fd, any, &len) == 0,
              "listen");
        std::printf("listening on 127.0.0.1:%d\n", ntohs(address.sin_port));
        std::fflush(stdout);
    }

    /* Watches a descriptor. Its events carry `what`: a client, or the address of a member. */
    void watch(int fd, void *what)
    {
        epoll_event event{};
        event.events = EPOLLIN;
        event.data.ptr = what;
        check(epoll_ctl(epoll_.get(), EPOLL_CTL_ADD, fd, &event) == 0, "EPOLL_CTL_ADD");
    }

    void accept_clients()
    {
        while (handoff::unique_fd fd{
            accept4(listener_.get(), nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK)}) {
            auto &added = *waiting_.emplace_back(std::make_unique<client>());
            added.fd = std::move(fd);
            added.deadline = steady_clock::now() + request_time;
            added.place = std::prev(waiting_.end());
            watch(added.fd.get(), &added);
        }
        if (errno == EAGAIN || errno == ECONNABORTED)
            return;
        // Perhaps there is no descriptor for it now: the listener stays readable, so not again at once.
        std::perror("broker: accept4");
        std::this_thread::sleep_for(milliseconds(10));
    }

    /* Takes a client out of the event loop. This comes before the offer: close(2) does not do it
     * while another process has a copy, epoll(7). */
    std::unique_ptr<client> stop_waiting(const client &found)
    {
        check(epoll_ctl(epoll_.get(), EPOLL_CTL_DEL, found.fd.get(), nullptr) == 0,
              "EPOLL_CTL_DEL");
        auto owned = std::move(*found.place);
        waiting_.erase(owned->place);
        return owned;
    }

    /* Reads a client's request, which comes in one piece in this example, and puts it into the
     * queue. */
    void read_request(const client &found)
    {
        char request[4096];
        const ssize_t len = recv(found.fd.get(), request, sizeof request, 0);
        if (len == -1 && errno == EAGAIN)
            return;
        auto asking = stop_waiting(found);
        if (len <= 0)
            return;  // it has gone
        connections_++;
        asking->request.assign(request, static_cast<std::size_t>(len));
        asking->deadline = steady_clock::now() + queue_time;
        queue_.push_back(std::move(asking));
    }

    /* Offers the clients in the queue for as long as there is room. When there is room again, the
     * broker's descriptor becomes readable. */
    void offer_queue()
    {
        while (!queue_.empty()) {
            auto &asking = queue_.front();
            handoff::offer offer;
            offer.fd = asking->fd.get();
            offer.preread = asking->request;
            offer.more = true;  // until the flush at the end of this turn of the loop
            const auto offered = backend_.offer(offer, asking.get());
            if (!offered && offered.error == handoff::errc::full)
                return;
            if (offered)
                (void)asking.release();  // until its verdict
            else
                serve(*asking, offered.reason);
            queue_.pop_front();
        }
    }

    void serve_queue(steady_clock::time_point until)
    {
        for (; !queue_.empty() && queue_.front()->deadline <= until; queue_.pop_front())
            serve(*queue_.front(), handoff::reason::backend_busy);
    }

    void take_verdicts()
    {
        for (const auto &verdict : backend_.verdicts()) {
            const std::unique_ptr<client> asking(verdict.user_data);
            if (verdict.adopted)
                adopted_++;  // no shutdown(2), which would end the backend's connection too
            else
                serve(*asking, verdict.reason);
        }
    }

    /* Serves a client whose request has been read, without the backend. */
    void serve(const client &asking, handoff::reason reason)
    {
        constexpr std::string_view answer = "HTTP/1.0 200 OK\r\nContent-Length: 21\r\n\r\n"
                                            "served by the broker\n";
        fallbacks_[reason]++;
        // The backend may have had a copy, and copies share O_NONBLOCK.
        if (send(asking.fd.get(), answer.data(), answer.size(), MSG_DONTWAIT | MSG_NOSIGNAL)
            != static_cast<ssize_t>(answer.size()))
            std::perror("broker: answering a client");
        // The backend may still hold a copy. While it does, close(2) does not end the connection.
        shutdown(asking.fd.get(), SHUT_WR);
    }

    /* Forgets clients that sent no request in time, and serves those that have been in the queue for
     * too long. Returns the milliseconds until the next deadline, or -1 if there is none. */
    int expire()
    {
        const auto now = steady_clock::now();
        while (!waiting_.empty() && waiting_.front()->deadline <= now)
            stop_waiting(*waiting_.front());
        serve_queue(now);
        auto next = steady_clock::time_point::max();
        for (const auto *clients : {&waiting_, &queue_})
            if (!clients->empty())
                next = std::min(next, clients->front()->deadline);
        if (next == steady_clock::time_point::max())
            return -1;
        return static_cast<int>(std::chrono::ceil<milliseconds>(next - now).count());
    }

    handoff::broker<client> backend_;
    handoff::unique_fd epoll_, listener_, signals_;
    client_list waiting_;  // without a request yet, the earliest deadline first
    client_list queue_;    // with a request, until there is room
    unsigned long connections_ = 0, adopted_ = 0;
    std::map<handoff::reason, unsigned long> fallbacks_;
};

}  // namespace

int main(int argc, char **argv)
try {
    if (argc < 3 || argc > 5) {
        std::fputs("usage: broker PORT SOCKET|DIRECTORY/ [TIMEOUT_MS [FAILURE_PERIOD_MS]]\n", stderr);
        return 2;
    }
    handoff::broker_options options;
    options.timeout = milliseconds(argc > 3 ? std::atol(argv[3]) : 0);  // 0: the default
    options.failure_period = milliseconds(argc > 4 ? std::atol(argv[4]) : 0);
    broker(static_cast<std::uint16_t>(std::atoi(argv[1])), argv[2], options).run();
    return 0;
} catch (const std::exception &error) {
    std::fprintf(stderr, "broker: %s\n", error.what());
    return 1;
}
