// Several backends of one broker.
#include "support.hpp"

using handoff::errc;
using handoff::phase;
using handoff::reason;
using std::chrono::milliseconds;

namespace {

/** A backend in a directory of its own. */
class worker {
  public:
    worker() : path(directory_.socket())
    {
        std::error_code ec;
        backend = handoff::backend::listen(path.c_str(), {}, ec);
        REQUIRE(!ec);
    }

  private:
    test::directory directory_;

  public:
    std::string path;
    handoff::backend backend;
};

/** A broker with these backends, and a channel to each. */
handoff::broker<> broker_of(std::initializer_list<worker *> workers,
                            const handoff::broker_options &options = {})
{
    std::error_code ec;
    handoff::broker<> broker(nullptr, options, ec);
    REQUIRE(!ec);
    for (const worker *const each : workers) {
        handoff::broker_backend backend;
        backend.path = each->path.c_str();
        broker.add(backend, ec);
        REQUIRE(!ec);
    }
    REQUIRE(broker.fd(ec) != -1);
    while (broker.statistics(ec).connects < workers.size()) {
        for (worker *const each : workers)
            each->backend.dispatch(ec);
        test::await_readable(broker.fd(ec));
        broker.dispatch(ec);
        REQUIRE(!ec);
    }
    return broker;
}

void offer(handoff::broker<> &broker, int fd)
{
    std::error_code ec;
    handoff::offer what;
    what.fd = fd;
    REQUIRE(broker.offer(what, nullptr, ec));
}

}  // namespace

TEST_CASE("a broker without a backend refuses offers until it has one")
{
    const test::no_leak no_leak;
    worker one;
    std::error_code ec;
    handoff::broker<> broker(nullptr, {}, ec);
    REQUIRE(!ec);
    const test::connection connection;
    handoff::offer what;
    what.fd = connection.server.get();
    CHECK(broker.offer(what, nullptr, ec).error == errc::backend_unavailable);
    CHECK(!ec);
    CHECK(!broker.state(0, ec));
    CHECK(!ec);

    auto filled = broker_of({&one});
    CHECK(filled.room(ec) > 0);
    offer(filled, connection.server.get());
    CHECK(!ec);
}

TEST_CASE("an offer that one backend is too busy for goes to the next, and the verdict names it")
{
    const test::no_leak no_leak;
    worker first, second;
    auto broker = broker_of({&first, &second});
    const test::connection connection;
    offer(broker, connection.server.get());
    std::error_code ec;
    worker *busy = &first, *other = &second;
    first.backend.dispatch(ec);
    second.backend.dispatch(ec);
    auto arrival = first.backend.next(ec);
    if (!arrival) {
        std::swap(busy, other);
        arrival = second.backend.next(ec);
    }
    REQUIRE(arrival);
    arrival->reject(reason::backend_busy, ec);
    busy->backend.dispatch(ec);
    broker.dispatch(ec);
    CHECK(!broker.next(ec));

    other->backend.dispatch(ec);
    arrival = other->backend.next(ec);
    REQUIRE(arrival);
    CHECK(arrival->adopt(ec));
    other->backend.dispatch(ec);
    broker.dispatch(ec);
    const auto verdict = broker.next(ec);
    REQUIRE(verdict);
    CHECK(verdict->adopted);
    CHECK(verdict->attempts == 2);
    CHECK(verdict->backend == other->path);
    CHECK(verdict->kind == 0);
    CHECK(broker.statistics(ec).failovers == 1);

    for (std::size_t i = 0; const auto state = broker.state(i, ec); i++) {
        const bool was_busy = state->path == busy->path;
        CHECK(state->offered == 1);
        CHECK(state->adopted == (was_busy ? 0 : 1));
        CHECK(state->count(reason::backend_busy) == (was_busy ? 1 : 0));
    }
    CHECK(!ec);
}

TEST_CASE("the attempt's timeout is one of the options")
{
    const test::no_leak no_leak;
    worker first, second;
    handoff::broker_options options;
    options.attempt_timeout = milliseconds(20);
    options.failover_bytes = 1024;
    auto broker = broker_of({&first, &second}, options);
    const test::connection connection;
    offer(broker, connection.server.get());
    std::error_code ec;
    while (broker.statistics(ec).failovers == 0) {
        test::await_readable(broker.fd(ec));
        broker.dispatch(ec);
        REQUIRE(!ec);
    }
}

TEST_CASE("a state says what a backend does and why")
{
    const test::no_leak no_leak;
    worker one;
    auto broker = broker_of({&one});
    std::error_code ec;
    auto state = broker.state(0, ec);
    REQUIRE(state);
    CHECK(state->path == one.path);
    CHECK(state->phase() == phase::ready);
    CHECK(name(state->phase()) == std::string("ready"));
    CHECK(!state->code());
    CHECK(!state->is_backup());
    CHECK(!state->is_off());
    CHECK(state->weight == 1);
    CHECK(state->room == broker.room(ec));
    CHECK(!broker.state(1, ec));
    CHECK(!ec);

    const std::string nowhere = one.path + "-of-nobody";
    handoff::broker_backend other;
    other.path = nowhere.c_str();
    other.weight = 7;
    other.backup = true;
    broker.add(other, ec);
    REQUIRE(!ec);
    state = broker.state(1, ec);
    REQUIRE(state);
    CHECK(state->path == nowhere);
    CHECK(state->phase() == phase::down);
    CHECK(state->code() == errc::backend_unavailable);
    CHECK(state->system_errno == ENOENT);
    CHECK(std::string_view(state->message).find(nowhere) != std::string_view::npos);
    CHECK(state->is_backup());
    CHECK(state->weight == 7);

    other.off = true;
    broker.add(other, ec);
    CHECK(broker.state(1, ec)->is_off());
    CHECK(broker.remove(nowhere.c_str(), ec));
    CHECK(!broker.remove(nowhere.c_str(), ec));
    CHECK(!ec);
    CHECK(!broker.state(1, ec));
}

TEST_CASE("refusals are counted by their error")
{
    const test::no_leak no_leak;
    worker one;
    handoff::broker_options options;
    options.max_in_flight = 1;
    auto broker = broker_of({&one}, options);
    const test::connection connection;
    offer(broker, connection.server.get());
    std::error_code ec;
    CHECK(broker.room(ec) == 0);
    CHECK(!ec);
    handoff::offer what;
    what.fd = connection.server.get();
    CHECK(broker.offer(what, nullptr, ec).error == errc::full);
    const auto state = broker.state(0, ec);
    REQUIRE(state);
    CHECK(state->count(errc::full) == 1);
    CHECK(state->count(errc::rate_limited) == 0);
    CHECK(state->count(static_cast<errc>(-1000)) == 0);
    CHECK(state->count(static_cast<errc>(1)) == 0);
    CHECK(state->count(static_cast<reason>(1000)) == 0);
}

TEST_CASE("there is no room after close, which is no error")
{
    const test::no_leak no_leak;
    worker one;
    auto broker = broker_of({&one});
    std::error_code ec;
    broker.close(ec);
    CHECK(broker.room(ec) == 0);
    CHECK(!ec);
    handoff::broker_backend backend;
    backend.path = one.path.c_str();
    broker.add(backend, ec);
    CHECK(ec == errc::closed);
}

TEST_CASE("a backend's path must be one")
{
    std::error_code ec;
    handoff::broker<> broker(nullptr, {}, ec);
    broker.add({}, ec);
    CHECK(ec == errc::invalid_argument);
    const std::string longer(200, 'x');
    handoff::broker_backend backend;
    backend.path = longer.c_str();
    broker.add(backend, ec);
    CHECK(ec == errc::invalid_argument);
}

#ifdef __cpp_exceptions
TEST_CASE("backends are added and asked in the form that throws")
{
    const test::no_leak no_leak;
    worker one;
    auto broker = broker_of({&one});
    CHECK(broker.room() > 0);
    CHECK(broker.state(0)->phase() == phase::ready);
    CHECK(!broker.state(1));
    CHECK_THROWS_AS(broker.add({}), handoff::error);
    CHECK(!broker.remove("/nowhere"));
    CHECK(broker.remove(one.path.c_str()));
    CHECK(broker.room() == 0);
}
#endif
