// The broker's end.
#include "support.hpp"

#include <thread>
#include <vector>

#include <fcntl.h>
#include <sys/uio.h>

using handoff::errc;
using handoff::reason;
using std::chrono::milliseconds;

TEST_CASE("a broker for a path that cannot be a socket's is empty, and an error")
{
    std::error_code ec;
    const handoff::broker<> broker(std::string(200, 'x').c_str(), {}, ec);
    CHECK(ec == errc::invalid_argument);
    CHECK(!broker);
}

TEST_CASE("options that contradict each other are an error")
{
    handoff::broker_options options;
    options.reconnect_min = milliseconds(100);
    options.reconnect_max = milliseconds(10);
    std::error_code ec;
    const handoff::broker<> broker("/nowhere", options, ec);
    CHECK(ec == errc::invalid_argument);
}

TEST_CASE("a broker's options count")
{
    handoff::broker_options options;
    options.max_in_flight = 1;
    options.timeout = milliseconds(20);
    options.max_failures = 1;
    const auto time_out = [&options] {
        test::channel channel(options);
        const test::connection connection;
        channel.offer(connection.server.get());
        handoff::offer offer;
        offer.fd = connection.server.get();
        const auto waits = channel.broker.offer(offer, nullptr, channel.ec);
        CHECK(waits.error == errc::full);
        CHECK(waits.may_pass());
        CHECK(!handoff::offer_result{}.may_pass());
        CHECK(!channel.ec);

        const auto late = channel.awaited_verdict();
        CHECK(late.reason == reason::ack_timeout);
        CHECK(late.may_pass());
        CHECK(!handoff::verdict<>{}.may_pass());
        const auto refused = channel.broker.offer(offer, nullptr, channel.ec);
        CHECK(refused.error == errc::rate_limited);
        CHECK(refused.reason == reason::rate_limited);
    };
    CHECK(test::takes_less_than(std::chrono::seconds(4), time_out)); /* the default is 5 */
}

TEST_CASE("a broker's policy decides who may be its backend")
{
    const test::directory directory;
    std::error_code ec;
    auto backend = handoff::backend::listen(directory.socket().c_str(), {}, ec);
    REQUIRE(!ec);
    const std::uint32_t users[] = {geteuid() + 1};
    handoff_peer_policy policy = HANDOFF_PEER_POLICY_INIT;
    policy.users = users;
    policy.users_len = 1;
    handoff::broker_options options;
    options.policy = &policy;
    handoff::broker<> broker(directory.socket().c_str(), options, ec);
    REQUIRE(broker.fd(ec) != -1);
    const test::connection connection;
    handoff::offer offer;
    offer.fd = connection.server.get();
    const auto refused = broker.offer(offer, nullptr, ec);
    CHECK(!ec);
    CHECK(refused.error == errc::peer_not_allowed);
}

TEST_CASE("every member of an empty broker fails")
{
    handoff::broker<> broker;
    std::error_code ec;
    CHECK(!broker);
    CHECK(broker.get() == nullptr);

    CHECK(!broker.offer({}, nullptr, ec));
    CHECK(ec == errc::invalid_argument);
    ec.clear();
    CHECK(!broker.offer_and_wait({}, ec).adopted);
    CHECK(ec == errc::invalid_argument);
    broker.flush(ec);
    CHECK(ec == errc::invalid_argument);
    ec.clear();
    CHECK(broker.fd(ec) == -1);
    CHECK(ec == errc::invalid_argument);
    ec.clear();
    broker.dispatch(ec);
    CHECK(ec == errc::invalid_argument);
    ec.clear();
    CHECK(!broker.next(ec));
    CHECK(ec == errc::invalid_argument);
    ec.clear();
    for (const auto &verdict : broker.verdicts(ec))
        CHECK_MESSAGE(false, verdict.id);
    CHECK(ec == errc::invalid_argument);
    ec.clear();
    CHECK(!broker.take_back(1, ec));
    CHECK(ec == errc::invalid_argument);
    ec.clear();
    broker.close(ec);
    CHECK(ec == errc::invalid_argument);
    ec.clear();
    handoff::broker_backend backend;
    backend.path = "/nowhere";
    broker.add(backend, ec);
    CHECK(ec == errc::invalid_argument);
    ec.clear();
    CHECK(!broker.remove("/nowhere", ec));
    CHECK(ec == errc::invalid_argument);
    ec.clear();
    CHECK(broker.room(ec) == 0);
    CHECK(ec == errc::invalid_argument);
    ec.clear();
    CHECK(!broker.state(0, ec));
    CHECK(ec == errc::invalid_argument);
    ec.clear();
    CHECK(broker.statistics(ec).offered == 0);
    CHECK(ec == errc::invalid_argument);
    CHECK(std::string_view(broker.last_error()).empty());
}

TEST_CASE("a broker that was moved from is empty, and the other one goes on")
{
    test::channel channel;
    const test::connection connection;
    channel.offer(connection.server.get());
    handoff::broker<test::client> moved(std::move(channel.broker));
    CHECK(!channel.broker);
    CHECK(channel.broker.fd(channel.ec) == -1);
    CHECK(moved);

    channel.broker = std::move(moved);
    CHECK(!moved);
    channel.arrival().reject(reason::rejected, channel.ec);
    CHECK(channel.verdict().reason == reason::rejected);
}

TEST_CASE("an offer that is refused is not an error")
{
    const test::no_leak no_leak;
    const test::directory directory;
    std::error_code ec;
    handoff::broker<> broker(directory.socket().c_str(), {}, ec);
    REQUIRE(!ec);
    const test::connection connection;
    handoff::offer offer;
    offer.fd = connection.server.get();

    const auto offered = broker.offer(offer, nullptr, ec);
    CHECK(!ec);
    CHECK(!offered);
    CHECK(offered.reason == reason::backend_unavailable);
    CHECK(offered.error == errc::backend_unavailable);
    CHECK(offered.id == 0);

    const auto verdict = broker.offer_and_wait(offer, ec);
    CHECK(!ec);
    CHECK(!verdict.adopted);
    CHECK(verdict.reason == reason::backend_unavailable);
    CHECK(verdict.error == errc::backend_unavailable);
    CHECK(!verdict.may_have_reached_backend);
    CHECK(broker.statistics(ec).offered == 0);
}

TEST_CASE("an offer that the caller got wrong is an error")
{
    test::channel channel;
    const handoff::unique_fd file(open("/dev/null", O_RDONLY | O_CLOEXEC));
    handoff::offer offer;
    for (const int fd : {-1, file.get()}) {
        offer.fd = fd;
        const auto offered = channel.broker.offer(offer, nullptr, channel.ec);
        CHECK(!offered);
        CHECK(channel.ec == errc::invalid_argument);
        CHECK(offered.error == channel.ec);
        CHECK(offered.reason == reason::none);
        CHECK(!channel.broker.offer_and_wait(offer, channel.ec).adopted);
        CHECK(channel.ec == errc::invalid_argument);
    }
}

TEST_CASE("what is in an offer arrives")
{
    test::channel channel;
    const test::connection connection;
    handoff::offer offer;
    offer.fd = connection.server.get();
    offer.preread = "GET /";
    offer.metadata = std::string_view("a\0b", 3);
    offer.service = "web";
    offer.correlation = "42";
    const std::uint64_t id = channel.offer(offer);
    CHECK(id != 0);

    auto arrival = channel.arrival();
    CHECK(arrival.id() != 0);
    CHECK(arrival.preread() == "GET /");
    CHECK(arrival.metadata() == std::string_view("a\0b", 3));
    CHECK(arrival.service() == "web");
    CHECK(arrival.correlation() == "42");
    CHECK(arrival.broker_pid() == getpid());
    CHECK(arrival.broker_uid() == geteuid());
    CHECK(arrival.broker_gid() == getegid());
}

TEST_CASE("preread bytes may lie in several buffers, but not in both members")
{
    test::channel channel;
    const test::connection connection;
    char first[] = "GET ", second[] = "/";
    const iovec parts[] = {{first, 4}, {second, 1}};
    handoff::offer offer;
    offer.fd = connection.server.get();
    offer.preread_iov = parts;
    offer.preread_iov_len = 2;
    channel.offer(offer);
    CHECK(channel.arrival().preread() == "GET /");

    offer.preread = "GET /";
    CHECK(!channel.broker.offer(offer, nullptr, channel.ec));
    CHECK(channel.ec == errc::invalid_argument);
}

#if __cplusplus >= 202002L
TEST_CASE("an offer can be written in one line")
{
    test::channel channel;
    const test::connection connection;
    test::client client{7};
    REQUIRE(channel.broker.offer({.fd = connection.server.get(), .preread = "GET /"}, &client,
                                 channel.ec));
    CHECK(channel.arrival().preread() == "GET /");
}
#endif

TEST_CASE("offers with more to come are sent together")
{
    test::channel channel;
    const test::connection connection;
    handoff::offer offer;
    offer.fd = connection.server.get();
    offer.more = true;
    channel.offer(offer);
    channel.backend.dispatch(channel.ec);
    CHECK(!channel.backend.next(channel.ec));
    channel.broker.flush(channel.ec);
    CHECK(!channel.ec);
    (void)channel.arrival();
}

TEST_CASE("each verdict has the user data of its offer")
{
    test::channel channel;
    const test::connection connection;
    test::client clients[5] = {{0}, {1}, {2}, {3}, {4}};
    std::vector<std::uint64_t> ids;
    for (auto &client : clients)
        ids.push_back(channel.offer(connection.server.get(), &client));
    int arrived = 0;
    for (int turn = 0; turn < 5; turn++) {
        channel.backend.dispatch(channel.ec);
        for (auto &arrival : channel.backend.arrivals(channel.ec))
            if (arrived++ % 2 == 0)
                CHECK(arrival.adopt(channel.ec));
            else
                arrival.reject(reason::policy_disabled, channel.ec);
        CHECK(!channel.ec);
    }

    channel.broker.dispatch(channel.ec);
    std::size_t told = 0;
    for (const auto &verdict : channel.broker.verdicts(channel.ec)) {
        CHECK(verdict.id == ids[told]);
        CHECK(verdict.user_data == &clients[told]);
        CHECK(verdict.adopted == (verdict.user_data->number % 2 == 0));
        CHECK(verdict.reason == (verdict.adopted ? reason::none : reason::policy_disabled));
        told++;
    }
    CHECK(!channel.ec);
    CHECK(told == 5);
}

TEST_CASE("a range that is left goes on in the next one")
{
    test::channel channel;
    const test::connection connection;
    for (int i = 0; i < 3; i++)
        channel.offer(connection.server.get());
    for (int turn = 0; turn < 3; turn++) {
        channel.backend.dispatch(channel.ec);
        for (auto &arrival : channel.backend.arrivals(channel.ec))
            arrival.reject(reason::rejected, channel.ec);
    }
    channel.broker.dispatch(channel.ec);
    int told = 0;
    for (const auto &verdict : channel.broker.verdicts(channel.ec)) {
        told += verdict.id != 0;
        break;
    }
    for (const auto &verdict : channel.broker.verdicts(channel.ec))
        told += verdict.id != 0;
    CHECK(told == 3);
}

TEST_CASE("an offer is taken back, or it is too late, and neither is an error")
{
    test::channel channel;
    const test::connection connection;
    const auto first = channel.offer(connection.server.get());
    CHECK(channel.broker.take_back(first, channel.ec));
    CHECK(!channel.ec);
    CHECK(!channel.verdict_if_any());

    const auto second = channel.offer(connection.server.get());
    CHECK(channel.arrival().adopt(channel.ec));
    CHECK(!channel.broker.take_back(second, channel.ec));
    CHECK(!channel.ec);
    CHECK(channel.verdict().adopted);
}

TEST_CASE("an offer whose time is already over does not wait for the default time")
{
    const auto time_out = [] {
        test::channel channel;
        const test::connection connection;
        handoff::offer offer;
        offer.fd = connection.server.get();
        offer.timeout = milliseconds(-1);
        channel.offer(offer);
        const auto verdict = channel.awaited_verdict();
        CHECK(!verdict.adopted);
        CHECK(verdict.reason == reason::ack_timeout);
        CHECK(verdict.may_have_reached_backend);
    };
    CHECK(test::takes_less_than(std::chrono::seconds(4), time_out)); /* the default is 5 */
}

TEST_CASE("a closed broker has a verdict for each offer and refuses more; closing twice is an error")
{
    test::channel channel;
    const test::connection connection;
    channel.offer(connection.server.get());
    channel.offer(connection.server.get());
    channel.broker.close(channel.ec);
    CHECK(!channel.ec);
    int told = 0;
    for (const auto &verdict : channel.broker.verdicts(channel.ec)) {
        CHECK(verdict.reason == reason::broker_closed);
        told++;
    }
    CHECK(!channel.ec);
    CHECK(told == 2);

    handoff::offer offer;
    offer.fd = connection.server.get();
    const auto refused = channel.broker.offer(offer, nullptr, channel.ec);
    CHECK(!channel.ec);
    CHECK(!refused);
    CHECK(refused.error == errc::closed);
    CHECK(refused.reason == reason::broker_closed);
    const auto verdict = channel.broker.offer_and_wait(offer, channel.ec);
    CHECK(!channel.ec);
    CHECK(!verdict.adopted);
    CHECK(verdict.reason == reason::broker_closed);

    channel.broker.close(channel.ec);
    CHECK(channel.ec == errc::closed);
    CHECK(channel.broker.fd(channel.ec) == -1);
    CHECK(channel.ec == errc::closed);
    CHECK(std::string_view(channel.broker.last_error()).find("closed") != std::string_view::npos);
}

TEST_CASE("a broker waits for its verdict, while a backend in another thread accepts")
{
    const test::no_leak no_leak;
    const test::directory directory;
    const test::connection connection;
    std::error_code ec;
    auto backend = handoff::backend::listen(directory.socket().c_str(), {}, ec);
    REQUIRE(!ec);
    std::thread thread([&backend] {
        std::error_code ec;
        auto arrival = backend.accept(milliseconds(test::patience_ms), ec);
        if (arrival && arrival->preread() == "hello")
            (void)!write(arrival->adopt(ec).get(), "adopted", 7);
    });
    handoff::broker<> broker(directory.socket().c_str(), {}, ec);
    handoff::offer offer;
    offer.fd = connection.server.get();
    offer.preread = "hello";
    const auto verdict = broker.offer_and_wait(offer, ec);
    thread.join();
    CHECK(!ec);
    CHECK(verdict.adopted);
    CHECK(verdict.reason == reason::none);
    char answer[8] = {};
    CHECK(read(connection.client.get(), answer, 7) == 7);
    CHECK(std::string_view(answer) == "adopted");
}

TEST_CASE("an offer whose wait is woken is taken back, without an error")
{
    test::channel channel;
    const test::connection connection;
    handoff::offer offer;
    offer.fd = connection.server.get();
    CHECK(channel.broker.wake());
    const auto verdict = channel.broker.offer_and_wait(offer, channel.ec);
    CHECK(!channel.ec);
    CHECK(!verdict.adopted);
    CHECK(verdict.reason == reason::none);
    CHECK(verdict.may_have_reached_backend);
    CHECK(!verdict.error);
    CHECK(!channel.verdict_if_any());
    CHECK(!handoff::broker<>().wake());
}

TEST_CASE("a range stops at an error, which cannot be taken for the end")
{
    test::channel channel;
    const test::connection connection;
    channel.offer(connection.server.get());
    test::in_child([&channel] {
        std::error_code ec, fd_ec;
        for (const auto &verdict : channel.broker.verdicts(ec))
            return verdict.id == 0;
        const int fd = channel.broker.fd(fd_ec);
        return ec == errc::wrong_process && fd == -1 && fd_ec == errc::wrong_process;
    });
    for (const auto &verdict : channel.broker.verdicts(channel.ec))
        CHECK_MESSAGE(false, verdict.id);
    CHECK(!channel.ec);
}

#ifdef __cpp_exceptions
TEST_CASE("an exception has the error code and the last error's message")
{
    const std::string path(200, 'x');
    try {
        const handoff::broker<> broker(path.c_str());
        CHECK(!broker);
    } catch (const std::system_error &error) {
        CHECK(error.code() == errc::invalid_argument);
        CHECK(std::string_view(error.what()) == handoff_last_error());
        const handoff::error copy = dynamic_cast<const handoff::error &>(error);
        CHECK(std::string_view(copy.what()) == error.what());
        return;
    }
    CHECK_MESSAGE(false, "nothing was thrown");
}

TEST_CASE("every member of an empty broker throws")
{
    handoff::broker<> broker;
    CHECK_THROWS_AS((void)broker.offer({}), std::system_error);
    CHECK_THROWS_AS((void)broker.offer_and_wait({}), std::system_error);
    CHECK_THROWS_AS(broker.flush(), std::system_error);
    CHECK_THROWS_AS((void)broker.fd(), std::system_error);
    CHECK_THROWS_AS(broker.dispatch(), std::system_error);
    CHECK_THROWS_AS((void)broker.next(), std::system_error);
    CHECK_THROWS_AS((void)broker.verdicts().begin(), std::system_error);
    CHECK_THROWS_AS((void)broker.take_back(1), std::system_error);
    CHECK_THROWS_AS(broker.close(), std::system_error);
    CHECK_THROWS_AS((void)broker.statistics(), std::system_error);
}

TEST_CASE("what is no error throws nothing")
{
    test::channel channel;
    const test::connection connection;
    handoff::offer offer;
    offer.fd = connection.server.get();
    const auto first = channel.broker.offer(offer);
    const auto second = channel.broker.offer(offer);
    CHECK((first && second));
    CHECK(channel.broker.take_back(first.id));
    CHECK(channel.arrival().adopt());
    CHECK(!channel.broker.take_back(second.id));
    CHECK(!channel.backend.next());  // the end of the batch: sends its verdict
    channel.broker.dispatch();
    int told = 0;
    for (const auto &verdict : channel.broker.verdicts())
        told += verdict.adopted;
    CHECK(told == 1);
    CHECK(!channel.broker.next());
    CHECK(channel.broker.statistics().adopted == 1);

    channel.backend.drain();
    channel.broker.dispatch();
    CHECK(channel.broker.offer(offer).reason == reason::backend_unavailable);
    CHECK(!channel.broker.offer_and_wait(offer).adopted);
    channel.broker.close();
}

TEST_CASE("the type of the user data may be left out")
{
    const handoff::broker broker("/nowhere");
    static_assert(std::is_same_v<decltype(broker), const handoff::broker<void>>);
    CHECK(broker);
}
#endif
