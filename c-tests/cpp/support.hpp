// support.hpp: what the tests of handoff.hpp need.
#ifndef SUPPORT_HPP
#define SUPPORT_HPP

#include <handoff.hpp>
#include <handoff/raw.h>

#include <array>
#include <cstdlib>
#include <map>
#include <ostream>
#include <string>

#include <dirent.h>
#include <poll.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

// Without exceptions a REQUIRE that fails ends the program.
#define DOCTEST_CONFIG_NO_EXCEPTIONS_BUT_WITH_ALL_ASSERTS
#include <doctest/doctest.h>

namespace test {

inline constexpr int patience_ms = 60000;

/** Each open descriptor and what it is, so that one which was closed and opened anew shows. */
inline std::map<std::string, std::string> descriptors()
{
    std::map<std::string, std::string> open;
    DIR *const directory = opendir("/proc/self/fd");
    REQUIRE(directory != nullptr);
    const std::string own = std::to_string(dirfd(directory));
    while (const dirent *const entry = readdir(directory)) {
        std::array<char, 256> target{};
        const std::string path = std::string("/proc/self/fd/") + entry->d_name;
        if (entry->d_name[0] != '.' && entry->d_name != own
            && readlink(path.c_str(), target.data(), target.size() - 1) > 0)
            open[entry->d_name] = target.data();
    }
    closedir(directory);
    return open;
}

/** Checks that its test leaves the descriptors as they were. */
class no_leak {
  public:
    ~no_leak() { CHECK(descriptors() == before_); }

  private:
    std::map<std::string, std::string> before_ = descriptors();
};

/** A directory, removed with its sockets. */
class directory {
  public:
    directory() { REQUIRE(mkdtemp(path_.data()) != nullptr); }
    ~directory()
    {
        unlink(socket().c_str());
        rmdir(path_.c_str());
    }
    std::string socket() const { return path_ + "/socket"; }

  private:
    std::string path_ = "/tmp/handoff-cpp-XXXXXX";
};

/** A connected pair: one end to offer, and the client's. */
struct connection {
    connection()
    {
        int ends[2];
        REQUIRE(socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) == 0);
        server.reset(ends[0]);
        client.reset(ends[1]);
    }
    handoff::unique_fd server, client;
};

/** Whether bytes written to one descriptor come out of the other. */
inline bool are_connected(int from, int to)
{
    char got = 0;
    return write(from, "x", 1) == 1 && read(to, &got, 1) == 1 && got == 'x';
}

/** Whether the other end is closed, in all its copies. */
inline bool is_at_end(int fd)
{
    char got = 0;
    return recv(fd, &got, 1, MSG_DONTWAIT) == 0;
}

inline void await_readable(int fd)
{
    pollfd watched{fd, POLLIN, 0};
    REQUIRE(poll(&watched, 1, patience_ms) == 1);
}

/** Whether something takes less than so long, at least once: a machine may be slow for a while. */
template <class Work> bool takes_less_than(std::chrono::seconds most, Work work)
{
    for (int attempt = 0; attempt < 5; attempt++) {
        const auto start = std::chrono::steady_clock::now();
        work();
        if (std::chrono::steady_clock::now() - start < most)
            return true;
    }
    return false;
}

/** What a broker hands over in these tests. */
struct client {
    int number;
};

/** Both ends of a channel in this process. What one end sends is there for the other at once. */
class channel {
  public:
    explicit channel(const handoff::broker_options &broker_options = {},
                     const handoff::backend_options &backend_options = {})
    {
        const std::string path = directory_.socket();
        backend = handoff::backend::listen(path.c_str(), backend_options, ec);
        REQUIRE(!ec);
        broker = handoff::broker<client>(path.c_str(), broker_options, ec);
        REQUIRE(!ec);
        REQUIRE(broker.fd(ec) != -1);
        while (broker.statistics(ec).connects == 0) {
            backend.dispatch(ec);
            REQUIRE(!ec);
            await_readable(broker.fd(ec));
            broker.dispatch(ec);
            REQUIRE(!ec);
        }
    }

    std::uint64_t offer(const handoff::offer &what, client *user_data = nullptr)
    {
        const auto offered = broker.offer(what, user_data, ec);
        REQUIRE(!ec);
        REQUIRE(offered);
        return offered.id;
    }
    std::uint64_t offer(int fd, client *user_data = nullptr)
    {
        handoff::offer what;
        what.fd = fd;
        return offer(what, user_data);
    }

    /** The arrival that is there. */
    handoff::arrival arrival()
    {
        backend.dispatch(ec);
        REQUIRE(!ec);
        auto found = backend.next(ec);
        REQUIRE(found);
        return std::move(*found);
    }

    /** The verdict that is there. */
    handoff::verdict<client> verdict()
    {
        auto found = verdict_if_any();
        REQUIRE(found);
        return *found;
    }
    /** The verdict that will be there, without the backend. */
    handoff::verdict<client> awaited_verdict()
    {
        for (;;) {
            await_readable(broker.fd(ec));
            broker.dispatch(ec);
            REQUIRE(!ec);
            if (auto found = broker.next(ec))
                return *found;
        }
    }
    std::optional<handoff::verdict<client>> verdict_if_any()
    {
        backend.dispatch(ec);
        REQUIRE(!ec);
        broker.dispatch(ec);
        REQUIRE(!ec);
        auto found = broker.next(ec);
        REQUIRE(!ec);
        return found;
    }

  private:
    no_leak no_leak_;
    directory directory_;

  public:
    std::error_code ec;
    handoff::backend backend;
    handoff::broker<client> broker;
};

/** Runs `body` in a child, which succeeds if that returns true. */
template <class Body>
void in_child(Body body)
{
    const pid_t child = fork();
    REQUIRE(child != -1);
    if (child == 0)
        _exit(body() ? 0 : 1);
    int status = -1;
    REQUIRE(waitpid(child, &status, 0) == child);
    CHECK(WIFEXITED(status));
    CHECK(WEXITSTATUS(status) == 0);
}

}  // namespace test

/** doctest shows reasons by name. */
namespace handoff {
inline std::ostream &operator<<(std::ostream &out, reason why) { return out << name(why); }
}  // namespace handoff

#endif
