// Statuses as error codes, reasons, owned descriptors, and what the compiler can tell of the types.
#include "support.hpp"

#include <cstring>
#include <type_traits>
#include <utility>
#if __cplusplus >= 202002L
#include <iterator>
#include <ranges>
#endif

#include <fcntl.h>

using handoff::errc;
using std::chrono::milliseconds;

extern "C" const std::error_category *hidden_category();  // in hidden.cc

// Handles cost nothing beyond what they hold, and can be moved, not copied.
static_assert(sizeof(handoff::broker<>) == sizeof(handoff_broker *));
static_assert(sizeof(handoff::backend) == sizeof(handoff_backend *));
static_assert(sizeof(handoff::unique_fd) == sizeof(int));

template <class T>
constexpr bool is_owner = std::is_nothrow_move_constructible_v<T>
    && std::is_nothrow_move_assignable_v<T> && std::is_nothrow_default_constructible_v<T>
    && !std::is_copy_constructible_v<T> && !std::is_copy_assignable_v<T>;
static_assert(is_owner<handoff::broker<int>> && is_owner<handoff::backend>);
static_assert(is_owner<handoff::arrival> && is_owner<handoff::unique_fd>);

// What takes an error code does not throw.
#define EC std::declval<std::error_code &>()
#define NOTHROW(type, call) static_assert(noexcept(std::declval<type>().call))
using options = const handoff::broker_options &;
static_assert(std::is_nothrow_constructible_v<handoff::broker<>, const char *, options,
                                              std::error_code &>);
static_assert(std::is_nothrow_constructible_v<handoff::broker<>, const char *, std::error_code &>);
NOTHROW(handoff::broker<>, offer({}, nullptr, EC));
NOTHROW(handoff::broker<>, offer({}, EC));
NOTHROW(handoff::broker<>, offer_and_wait({}, EC));
NOTHROW(handoff::broker<>, flush(EC));
NOTHROW(handoff::broker<>, fd(EC));
NOTHROW(handoff::broker<>, dispatch(EC));
NOTHROW(handoff::broker<>, wake());
NOTHROW(handoff::broker<>, next(EC));
NOTHROW(handoff::broker<>, verdicts(EC));
NOTHROW(handoff::broker<>, take_back(0, EC));
NOTHROW(handoff::broker<>, add(std::declval<handoff::broker_backend>(), EC));
NOTHROW(handoff::broker<>, remove("", EC));
NOTHROW(handoff::broker<>, room(EC));
NOTHROW(handoff::broker<>, state(0, EC));
NOTHROW(handoff::broker<>, close(EC));
NOTHROW(handoff::broker<>, statistics(EC));
using backend_options = const handoff::backend_options &;
NOTHROW(handoff::backend, listen("", std::declval<backend_options>(), EC));
NOTHROW(handoff::backend, listen("", EC));
NOTHROW(handoff::backend, listen_on(0, std::declval<backend_options>(), EC));
NOTHROW(handoff::backend, listen_on(0, EC));
NOTHROW(handoff::backend, accept(handoff::no_timeout, EC));
NOTHROW(handoff::backend, accept(EC));
NOTHROW(handoff::backend, fd(EC));
NOTHROW(handoff::backend, dispatch(EC));
NOTHROW(handoff::backend, next(EC));
NOTHROW(handoff::backend, arrivals(EC));
NOTHROW(handoff::backend, drain(EC));
NOTHROW(handoff::backend, statistics(EC));
NOTHROW(handoff::arrival, adopt(EC));
NOTHROW(handoff::arrival, reject(handoff::reason::rejected, EC));
NOTHROW(handoff::arrival, reject(EC));

// A verdict has the type of its user data.
using verdict = decltype(std::declval<handoff::broker<test::client>>().next(EC))::value_type;
static_assert(std::is_same_v<decltype(verdict::user_data), test::client *>);
static_assert(std::is_same_v<decltype(handoff::verdict<>::user_data), void *>);

// A time that is over does not become the default, nor a wait without limit.
using handoff::detail::timeout_ms;
using handoff::detail::wait_ms;
static_assert(timeout_ms(milliseconds(250), 1) == 250 && timeout_ms(milliseconds(0), 0) == 0);
static_assert(timeout_ms(milliseconds(0), 1) == 1 && timeout_ms(milliseconds(-5), 0) == 1);
static_assert(timeout_ms(handoff::no_timeout, 1) == HANDOFF_NO_TIMEOUT);
static_assert(wait_ms(milliseconds(250)) == 250 && wait_ms(milliseconds(-5)) == 0);
static_assert(wait_ms(handoff::no_timeout) == -1 && wait_ms(std::chrono::hours(24 * 365)) > 0);

#if defined(__cpp_lib_ranges)
using verdict_range = handoff::broker<>::verdict_range;
static_assert(std::input_iterator<verdict_range::iterator>);
static_assert(std::ranges::input_range<verdict_range>);
static_assert(std::ranges::input_range<handoff::backend::arrival_range>);
#endif

TEST_CASE("an error code compares with errc and with the conditions of the standard library")
{
    const std::error_code ec = errc::address_in_use;
    CHECK(ec == errc::address_in_use);
    CHECK(ec != errc::full);
    CHECK(ec == std::errc::address_in_use);
    CHECK(ec != std::errc::permission_denied);
    CHECK(ec != std::error_code(HANDOFF_ERR_ADDRESS_IN_USE, std::generic_category()));
    CHECK(ec.value() == HANDOFF_ERR_ADDRESS_IN_USE);
    CHECK(ec.category() == handoff::error_category());
    CHECK(std::strcmp(ec.category().name(), "handoff") == 0);
}

TEST_CASE("every status but an error is no error")
{
    for (const handoff_status status :
         {HANDOFF_OK, HANDOFF_NOTHING, HANDOFF_TIMED_OUT, HANDOFF_WOKEN})
        CHECK(!handoff::make_error_code(status));
}

TEST_CASE("every error has its message and its own condition")
{
    for (handoff_status status = -64; status < 0; status++) {
        const std::error_code ec = handoff::make_error_code(status);
        CHECK(ec);
        CHECK(ec.message() == handoff_status_message(status));
        CHECK(ec == ec.default_error_condition());
    }
}

TEST_CASE("a status of the raw layer becomes an error code")
{
    handoff_raw_store *store = nullptr;
    REQUIRE(!handoff::make_error_code(handoff_raw_store_new(nullptr, &store)));
    handoff_raw_token token;
    REQUIRE(!handoff::make_error_code(handoff_raw_token_generate(&token)));
    CHECK(handoff::make_error_code(handoff_raw_store_redeem(store, &token))
          == errc::token_not_pending);
    handoff_raw_store_free(store);
}

TEST_CASE("a shared library that hides its symbols has the same category")
{
    CHECK(hidden_category() == &handoff::error_category());
}

TEST_CASE("a reason has its name")
{
    CHECK(std::strcmp(name(handoff::reason::backend_busy), "backend busy") == 0);
}

TEST_CASE("bytes may be of any type")
{
    const unsigned char buffer[] = {'a', 0, 'b'};
    CHECK(handoff::bytes(buffer, sizeof buffer) == std::string_view("a\0b", 3));
    CHECK(handoff::bytes(nullptr, 0).empty());
}

TEST_CASE("a descriptor is closed once, by its last owner")
{
    const test::no_leak no_leak;
    handoff::unique_fd first(open("/dev/null", O_RDONLY | O_CLOEXEC));
    REQUIRE(first);
    const int number = first.get();
    handoff::unique_fd second(std::move(first));
    CHECK(!first);
    CHECK(second.get() == number);

    auto &same = second;
    second = std::move(same);
    CHECK(second.get() == number);

    handoff::unique_fd other(open("/dev/null", O_RDONLY | O_CLOEXEC));
    other = std::move(second);
    CHECK(other.get() == number);
    CHECK(fcntl(number, F_GETFD) != -1);

    const int released = other.release();
    CHECK(!other);
    other.reset(released);
    other.reset();
    CHECK(fcntl(number, F_GETFD) == -1);
}
