// The backend's end: arrivals that are adopted, rejected, or left.
#include "support.hpp"

#include <stdexcept>
#include <thread>
#include <vector>

#include <sys/stat.h>
#include <sys/un.h>

using handoff::errc;
using handoff::reason;
using std::chrono::milliseconds;
using std::chrono::steady_clock;

TEST_CASE("a backend does not listen where another one does")
{
    const test::channel channel;
    std::error_code ec;
    const auto second = handoff::backend::listen("/nowhere/socket", {}, ec);
    CHECK(ec);
    CHECK(!second);
    const test::directory directory;
    const auto first = handoff::backend::listen(directory.socket().c_str(), {}, ec);
    REQUIRE(!ec);
    const auto third = handoff::backend::listen(directory.socket().c_str(), {}, ec);
    CHECK(ec == errc::address_in_use);
    CHECK(ec == std::errc::address_in_use);
    CHECK(!third);
}

TEST_CASE("what has a default in the form that throws has it with an error code, too")
{
    const test::directory directory;
    const test::connection connection;
    std::error_code ec;
    CHECK(handoff::backend::listen(directory.socket().c_str(), ec));
    CHECK(!ec);
    CHECK(!handoff::backend::listen_on(connection.server.get(), ec));
    CHECK(ec == errc::invalid_argument);
    CHECK(handoff::broker<>(directory.socket().c_str(), ec));
    CHECK(!ec);
    CHECK(!handoff::broker<>("", ec));
    CHECK(ec == errc::invalid_argument);

    test::channel channel;
    handoff::offer offer;
    offer.fd = connection.server.get();
    CHECK(channel.broker.offer(offer, ec));
    CHECK(!ec);
    CHECK(channel.backend.accept(ec));
    CHECK(!ec);
    CHECK(channel.verdict().adopted);
    CHECK(channel.broker.offer(offer, ec));
    channel.arrival().reject(ec);
    CHECK(!ec);
    CHECK(channel.verdict().reason == reason::rejected);
}

TEST_CASE("a backend's options count")
{
    const test::directory directory;
    std::error_code ec;
    handoff::backend_options options;
    options.max_offer_bytes = 2000;
    options.max_held_bytes = 1000;
    CHECK(!handoff::backend::listen(directory.socket().c_str(), options, ec));
    CHECK(ec == errc::invalid_argument);
    options = {};
    options.mode = 0640;
    const auto backend = handoff::backend::listen(directory.socket().c_str(), options, ec);
    REQUIRE(!ec);
    struct stat file{};
    REQUIRE(stat(directory.socket().c_str(), &file) == 0);
    CHECK((file.st_mode & 0777) == 0640);
}

TEST_CASE("a backend's limits count")
{
    handoff::backend_options options;
    options.max_in_flight = 1;
    options.kinds = HANDOFF_KIND_SEQPACKET;
    test::channel channel({}, options);
    const test::connection connection;
    channel.offer(connection.server.get());
    handoff::offer offer;
    offer.fd = connection.server.get();
    CHECK(channel.broker.offer(offer, nullptr, channel.ec).error == errc::full);
    channel.backend.dispatch(channel.ec);
    CHECK(!channel.backend.next(channel.ec));
    const auto verdict = channel.verdict();
    CHECK(verdict.reason == reason::kind);
    CHECK(verdict.kind == HANDOFF_KIND_STREAM);
}

TEST_CASE("a backend's policy decides who may connect")
{
    const test::directory directory;
    const std::uint32_t users[] = {geteuid() + 1};
    handoff_peer_policy policy = HANDOFF_PEER_POLICY_INIT;
    policy.users = users;
    policy.users_len = 1;
    handoff::backend_options options;
    options.policy = &policy;
    std::error_code ec;
    auto backend = handoff::backend::listen(directory.socket().c_str(), options, ec);
    REQUIRE(!ec);
    handoff::broker<> broker(directory.socket().c_str(), {}, ec);
    REQUIRE(broker.fd(ec) != -1);
    test::await_readable(backend.fd(ec));
    backend.dispatch(ec);
    CHECK(!ec);
    CHECK(backend.statistics(ec).refused == 1);
}

TEST_CASE("a backend listens on a socket that somebody else made")
{
    const test::no_leak no_leak;
    const test::directory directory;
    const handoff::unique_fd socket(::socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0));
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    directory.socket().copy(address.sun_path, sizeof address.sun_path - 1);
    REQUIRE(bind(socket.get(), reinterpret_cast<sockaddr *>(&address), sizeof address) == 0);
    REQUIRE(listen(socket.get(), 8) == 0);
    std::error_code ec;
    const auto backend = handoff::backend::listen_on(socket.get(), {}, ec);
    CHECK(!ec);
    CHECK(backend);
    CHECK(!handoff::backend::listen_on(-1, {}, ec));
    CHECK(ec == errc::invalid_argument);
}

TEST_CASE("every member of an empty backend fails")
{
    handoff::backend backend;
    std::error_code ec;
    CHECK(!backend);
    CHECK(backend.get() == nullptr);
    CHECK(!backend.accept(milliseconds(0), ec));
    CHECK(ec == errc::invalid_argument);
    ec.clear();
    CHECK(backend.fd(ec) == -1);
    CHECK(ec == errc::invalid_argument);
    ec.clear();
    backend.dispatch(ec);
    CHECK(ec == errc::invalid_argument);
    ec.clear();
    CHECK(!backend.next(ec));
    CHECK(ec == errc::invalid_argument);
    ec.clear();
    for (auto &arrival : backend.arrivals(ec))
        CHECK_MESSAGE(false, arrival.id());
    CHECK(ec == errc::invalid_argument);
    ec.clear();
    backend.drain(ec);
    CHECK(ec == errc::invalid_argument);
    ec.clear();
    CHECK(backend.statistics(ec).arrived == 0);
    CHECK(ec == errc::invalid_argument);
    CHECK(std::string_view(backend.last_error()).empty());
}

TEST_CASE("every member of an empty arrival fails, or is empty")
{
    handoff::arrival arrival;
    std::error_code ec;
    CHECK(arrival.preread().empty());
    CHECK(arrival.metadata().empty());
    CHECK(arrival.service().empty());
    CHECK(arrival.correlation().empty());
    CHECK(!arrival.adopt(ec));
    CHECK(ec == errc::invalid_argument);
    ec.clear();
    arrival.reject(reason::rejected, ec);
    CHECK(ec == errc::invalid_argument);
}

TEST_CASE("a backend that was moved from is empty, and its arrivals go on")
{
    test::channel channel;
    const test::connection connection;
    channel.offer(connection.server.get());
    auto arrival = channel.arrival();
    handoff::backend moved(std::move(channel.backend));
    CHECK(!channel.backend);
    CHECK(moved);
    CHECK(arrival.adopt(channel.ec));
    channel.backend = std::move(moved);
    CHECK(channel.verdict().adopted);
}

TEST_CASE("an arrival that nobody adopts rejects itself")
{
    test::channel channel;
    const test::connection connection;
    channel.offer(connection.server.get());
    {
        const auto arrival = channel.arrival();
        CHECK(channel.backend.statistics(channel.ec).held == 1);
    }
    CHECK(channel.backend.statistics(channel.ec).held == 0);
    CHECK(channel.backend.statistics(channel.ec).rejected == 1);
    const auto verdict = channel.verdict();
    CHECK(!verdict.adopted);
    CHECK(verdict.reason == reason::backend_busy);
    CHECK(test::are_connected(connection.client.get(), connection.server.get()));
}

TEST_CASE("an arrival that is moved rejects itself once, where it ends")
{
    test::channel channel;
    const test::connection connection;
    channel.offer(connection.server.get());
    channel.offer(connection.server.get());
    std::vector<handoff::arrival> kept;
    channel.backend.dispatch(channel.ec);
    for (auto &arrival : channel.backend.arrivals(channel.ec))
        kept.push_back(std::move(arrival));
    CHECK(!channel.ec);
    REQUIRE(kept.size() == 2);
    CHECK(channel.backend.statistics(channel.ec).held == 2);

    kept[0] = std::move(kept[1]);
    CHECK(channel.backend.statistics(channel.ec).rejected == 1);
    CHECK(!kept[1].adopt(channel.ec));
    CHECK(channel.ec == errc::invalid_argument);
    kept.clear();
    CHECK(channel.backend.statistics(channel.ec).rejected == 2);
    CHECK(channel.backend.statistics(channel.ec).held == 0);
}

TEST_CASE("arrivals that a loop leaves reject themselves, and the broker hears it at once")
{
    test::channel channel;
    const test::connection connection;
    for (int i = 0; i < 3; i++)
        channel.offer(connection.server.get());
    int arrived = 0;
    for (int turn = 0; turn < 3; turn++) {
        channel.backend.dispatch(channel.ec);
        for (auto &arrival : channel.backend.arrivals(channel.ec)) {
            CHECK(arrival.id() != 0);
            arrived++;
        }
        CHECK(!channel.ec);
    }
    CHECK(arrived == 3);
    channel.broker.dispatch(channel.ec);
    int told = 0;
    for (const auto &verdict : channel.broker.verdicts(channel.ec))
        told += verdict.reason == reason::backend_busy;
    CHECK(told == 3);
}

TEST_CASE("a rejected arrival brings its reason, and is empty afterwards")
{
    test::channel channel;
    const test::connection connection;
    handoff::offer offer;
    offer.fd = connection.server.get();
    offer.preread = "GET /";
    channel.offer(offer);
    auto arrival = channel.arrival();
    CHECK(arrival.preread() == "GET /");
    arrival.reject(reason::backend_busy, channel.ec);
    CHECK(!channel.ec);
    CHECK(arrival.preread().empty());
    CHECK(channel.verdict().reason == reason::backend_busy);

    CHECK(!arrival.adopt(channel.ec));
    CHECK(channel.ec == errc::invalid_argument);
}

TEST_CASE("an arrival that was decided does nothing when it ends")
{
    test::channel channel;
    const test::connection connection;
    channel.offer(connection.server.get());
    CHECK(channel.arrival().adopt(channel.ec));
    channel.offer(connection.server.get());
    channel.arrival().reject(reason::backend_busy, channel.ec);
    CHECK(std::string_view(channel.backend.last_error()).empty());
}

TEST_CASE("a reason that does not exist is an error, and the arrival is still held")
{
    test::channel channel;
    const test::connection connection;
    channel.offer(connection.server.get());
    auto arrival = channel.arrival();
    arrival.reject(static_cast<reason>(4711), channel.ec);
    CHECK(channel.ec == errc::invalid_argument);
    CHECK(arrival.adopt(channel.ec));
}

TEST_CASE("an adopted connection is the backend's, with what came along, and rejects no more")
{
    test::channel channel;
    const test::connection connection;
    handoff::offer offer;
    offer.fd = connection.server.get();
    offer.preread = "GET /";
    channel.offer(offer);
    handoff::unique_fd adopted;
    {
        auto arrival = channel.arrival();
        adopted = arrival.adopt(channel.ec);
        CHECK(!channel.ec);
        CHECK(arrival.preread() == "GET /");
        CHECK(!arrival.adopt(channel.ec));
        CHECK(channel.ec == errc::invalid_argument);
        arrival.reject(reason::rejected, channel.ec);
        CHECK(channel.ec == errc::invalid_argument);
    }
    REQUIRE(adopted);
    CHECK(test::are_connected(adopted.get(), connection.client.get()));
    CHECK(channel.verdict().adopted);
    CHECK(channel.backend.statistics(channel.ec).rejected == 0);
}

TEST_CASE("an arrival that was taken back is not adopted, without an error, and rejects no more")
{
    test::channel channel;
    const test::connection connection;
    const auto id = channel.offer(connection.server.get());
    {
        auto arrival = channel.arrival();
        CHECK(channel.broker.take_back(id, channel.ec));
        CHECK(!arrival.adopt(channel.ec));
        CHECK(!channel.ec);
        CHECK(arrival.service().empty());
    }
    const auto statistics = channel.backend.statistics(channel.ec);
    CHECK(statistics.taken_back == 1);
    CHECK(statistics.rejected == 0);
    CHECK(statistics.held == 0);
}

TEST_CASE("an arrival outlives its channel")
{
    test::channel channel;
    const test::connection connection;
    channel.offer(connection.server.get());
    auto first = channel.arrival();
    channel.broker = handoff::broker<test::client>();
    channel.backend.dispatch(channel.ec);
    REQUIRE(!channel.ec);
    CHECK(!first.adopt(channel.ec));
    CHECK(!channel.ec);
}

TEST_CASE("a wait that times out is not an error")
{
    test::channel channel;
    for (const milliseconds wait : {milliseconds(0), milliseconds(-1), milliseconds(5)}) {
        channel.ec = errc::full;
        CHECK(!channel.backend.accept(wait, channel.ec));
        CHECK(!channel.ec);
    }
}

TEST_CASE("a wait that is woken is not an error")
{
    test::channel channel;
    CHECK(channel.backend.wake());
    CHECK(!channel.backend.accept(handoff::no_timeout, channel.ec));
    CHECK(!channel.ec);
    CHECK(!handoff::backend().wake());

    std::thread thread([&channel] { channel.backend.wake(); });
    CHECK(!channel.backend.accept(handoff::no_timeout, channel.ec));
    CHECK(!channel.ec);
    thread.join();
}

TEST_CASE("an accepted arrival owns its connection")
{
    test::channel channel;
    const test::connection connection;
    handoff::offer offer;
    offer.fd = connection.server.get();
    offer.preread = "GET /";
    channel.offer(offer);
    auto arrival = channel.backend.accept(milliseconds(test::patience_ms), channel.ec);
    CHECK(!channel.ec);
    REQUIRE(arrival);
    CHECK(arrival->preread() == "GET /");
    arrival->reject(reason::rejected, channel.ec);
    CHECK(channel.ec == errc::invalid_argument);
    const auto adopted = arrival->adopt(channel.ec);
    CHECK(!channel.ec);
    REQUIRE(adopted);
    arrival.reset();
    CHECK(test::are_connected(adopted.get(), connection.client.get()));
}

TEST_CASE("an accepted arrival that is left closes its connection")
{
    test::channel channel;
    test::connection connection;
    channel.offer(connection.server.get());
    auto arrival = channel.backend.accept(milliseconds(test::patience_ms), channel.ec);
    REQUIRE(arrival);
    CHECK(channel.verdict().adopted);
    connection.server.reset();
    CHECK(!test::is_at_end(connection.client.get()));
    arrival.reset();
    CHECK(test::is_at_end(connection.client.get()));
    CHECK(channel.backend.statistics(channel.ec).rejected == 0);
}

TEST_CASE("a range of arrivals stops at an error, which cannot be taken for the end")
{
    test::channel channel;
    const test::connection connection;
    channel.offer(connection.server.get());
    channel.backend.dispatch(channel.ec);
    test::in_child([&channel] {
        std::error_code ec, fd_ec;
        for (auto &arrival : channel.backend.arrivals(ec))
            return arrival.id() == 0;
        const int fd = channel.backend.fd(fd_ec);
        return ec == errc::wrong_process && fd == -1 && fd_ec == errc::wrong_process;
    });
    int arrived = 0;
    for (auto &arrival : channel.backend.arrivals(channel.ec))
        arrived += arrival.id() != 0;
    CHECK(!channel.ec);
    CHECK(arrived == 1);
}

TEST_CASE("hundreds of connections go to a backend in another process, and none is lost")
{
    const test::no_leak no_leak;
    const test::directory directory;
    constexpr int count = 300;
    const std::string path = directory.socket();
    int ready[2];
    REQUIRE(pipe(ready) == 0);
    const pid_t child = fork();
    REQUIRE(child != -1);
    if (child == 0) {
        std::error_code ec;
        auto backend = handoff::backend::listen(path.c_str(), {}, ec);
        bool good = !ec && write(ready[1], "x", 1) == 1;
        for (int i = 0; i < count && good; i++) {
            auto arrival = backend.accept(milliseconds(test::patience_ms), ec);
            const auto fd = arrival ? arrival->adopt(ec) : handoff::unique_fd();
            good = fd && write(fd.get(), arrival->preread().data(), arrival->preread().size()) == 3;
        }
        backend = handoff::backend();
        _exit(good ? 0 : 1);
    }
    char byte = 0;
    CHECK(read(ready[0], &byte, 1) == 1);
    close(ready[0]);
    close(ready[1]);

    std::error_code ec;
    handoff::broker<test::connection> broker(path.c_str(), {}, ec);
    REQUIRE(!ec);
    std::vector<test::connection> connections(count);
    std::size_t offered = 0;
    int adopted = 0;
    const auto deadline = steady_clock::now() + milliseconds(test::patience_ms);
    while (adopted < count && steady_clock::now() < deadline) {
        handoff::offer offer;
        offer.preread = "abc";
        while (offered < connections.size()) {
            offer.fd = connections[offered].server.get();
            if (!broker.offer(offer, &connections[offered], ec))
                break;  // not connected yet, or full: again after some verdicts
            offered++;
        }
        REQUIRE(!ec);
        test::await_readable(broker.fd(ec));
        broker.dispatch(ec);
        REQUIRE(!ec);
        for (const auto &verdict : broker.verdicts(ec)) {
            char answer[4] = {};
            REQUIRE(verdict.adopted);
            CHECK(read(verdict.user_data->client.get(), answer, 3) == 3);
            CHECK(std::string_view(answer) == "abc");
            adopted++;
        }
        REQUIRE(!ec);
    }
    CHECK(adopted == count);
    int status = -1;
    CHECK(waitpid(child, &status, 0) == child);
    CHECK(status == 0);
}

#ifdef __cpp_exceptions
TEST_CASE("every member of an empty backend or arrival throws")
{
    handoff::backend backend;
    CHECK_THROWS_AS((void)handoff::backend::listen(""), std::system_error);
    CHECK_THROWS_AS((void)handoff::backend::listen_on(-1), std::system_error);
    CHECK_THROWS_AS((void)backend.accept(), std::system_error);
    CHECK_THROWS_AS((void)backend.accept(milliseconds(0)), std::system_error);
    CHECK_THROWS_AS((void)backend.fd(), std::system_error);
    CHECK_THROWS_AS(backend.dispatch(), std::system_error);
    CHECK_THROWS_AS((void)backend.next(), std::system_error);
    CHECK_THROWS_AS((void)backend.arrivals().begin(), std::system_error);
    CHECK_THROWS_AS(backend.drain(), std::system_error);
    CHECK_THROWS_AS((void)backend.statistics(), std::system_error);
    handoff::arrival arrival;
    CHECK_THROWS_AS((void)arrival.adopt(), std::system_error);
    CHECK_THROWS_AS(arrival.reject(), std::system_error);
}

TEST_CASE("a backend's usual results throw nothing")
{
    test::channel channel;
    const test::connection connection;
    const auto first = channel.offer(connection.server.get());
    channel.offer(connection.server.get());
    channel.backend.dispatch();
    auto taken_back = channel.backend.next();
    REQUIRE(taken_back);
    CHECK(channel.broker.take_back(first));
    CHECK(!taken_back->adopt());
    CHECK(channel.backend.accept()->adopt());
    CHECK(!channel.backend.accept(milliseconds(0)));
    CHECK(channel.backend.wake());
    CHECK(!channel.backend.accept());
    CHECK(!channel.backend.next());
    for (auto &arrival : channel.backend.arrivals())
        CHECK_MESSAGE(false, arrival.id());
    channel.offer(connection.server.get());
    channel.backend.dispatch();
    for (auto &arrival : channel.backend.arrivals())
        arrival.reject();
    CHECK(channel.backend.statistics().rejected == 1);
}

TEST_CASE("an arrival that is decided says so")
{
    test::channel channel;
    const test::connection connection;
    channel.offer(connection.server.get());
    auto accepted = channel.backend.accept();
    REQUIRE(accepted);
    const auto message = [](auto call) -> std::string {
        try {
            call();
        } catch (const std::system_error &error) {
            CHECK(error.code() == errc::invalid_argument);
            return error.what();
        }
        return "nothing was thrown";
    };
    const std::string already = "the arrival is already adopted by accept()";
    CHECK(message([&] { accepted->reject(); }) == already);
    CHECK(accepted->adopt());
    CHECK(message([&] { (void)accepted->adopt(); }) == already);

    channel.offer(connection.server.get());
    auto rejected = channel.arrival();
    rejected.reject();
    const std::string decided = "the arrival is empty, or already adopted or rejected";
    CHECK(message([&] { rejected.reject(); }) == decided);
    CHECK(message([&] { (void)rejected.adopt(); }) == decided);
}

TEST_CASE("an exception on the way to adoption rejects the arrival")
{
    test::channel channel;
    const test::connection connection;
    channel.offer(connection.server.get());
    channel.backend.dispatch();
    const auto prepare = [](handoff::arrival &arrival) {
        if (arrival.preread().empty())
            throw std::length_error("nothing to serve");
    };
    try {
        for (auto &arrival : channel.backend.arrivals()) {
            prepare(arrival);
            CHECK(arrival.adopt());
        }
    } catch (const std::length_error &) {
    }
    CHECK(channel.verdict().reason == reason::backend_busy);
}
#endif
