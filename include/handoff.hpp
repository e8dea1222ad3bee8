/*
 * handoff.hpp: handoff.h for C++17, without a cost of its own. Handles that own, errors as
 * std::error_code, ranges of verdicts and arrivals.
 *
 * A member is the call of the same name in handoff/broker.h, backends.h or backend.h. What these
 * headers say, and the rules in handoff.h, hold here too. The raw layer and handoff/tls.h have no
 * C++ form: call them as they are, and turn their statuses into error codes with make_error_code().
 *
 * - Results. What happens while peers come and go is a result, not an error: a refused offer, an
 *   arrival that was taken back, nothing to take, a wait that ended without a result.
 * - Errors. Each member that can fail has two forms, as in std::filesystem. One takes a
 *   std::error_code and is noexcept: it sets the code, or clears it if nothing failed. The other
 *   throws handoff::error, a std::system_error. That form does not exist if exceptions are switched
 *   off.
 * - Handles can be moved. A handle is empty if it was moved from or made without arguments. You can
 *   destroy it or assign to it. Its other members fail with errc::invalid_argument.
 */

#ifndef HANDOFF_HPP
#define HANDOFF_HPP

#if __cplusplus < 201703L
#error "handoff.hpp needs C++17"
#endif

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <iterator>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <type_traits>
#include <utility>

#include <unistd.h>

#include "handoff/backend.h"
#include "handoff/backends.h"
#include "handoff/broker.h"
#include "handoff/status.h"

namespace handoff {

// ---- errors and reasons -------------------------------------------------------------------------

/** The errors: HANDOFF_ERR_*. They convert to std::error_code. */
enum class errc : handoff_status {
    invalid_argument = HANDOFF_ERR_INVALID_ARGUMENT,
    unsupported = HANDOFF_ERR_UNSUPPORTED,
    permission_denied = HANDOFF_ERR_PERMISSION_DENIED,
    backend_unavailable = HANDOFF_ERR_BACKEND_UNAVAILABLE,
    would_block = HANDOFF_ERR_WOULD_BLOCK,
    descriptor_pressure = HANDOFF_ERR_DESCRIPTOR_PRESSURE,
    send_failed = HANDOFF_ERR_SEND_FAILED,
    short_write = HANDOFF_ERR_SHORT_WRITE,
    ack_timeout = HANDOFF_ERR_ACK_TIMEOUT,
    ack_mismatch = HANDOFF_ERR_ACK_MISMATCH,
    ack_malformed = HANDOFF_ERR_ACK_MALFORMED,
    receive_failed = HANDOFF_ERR_RECEIVE_FAILED,
    end_of_stream = HANDOFF_ERR_END_OF_STREAM,
    no_descriptor = HANDOFF_ERR_NO_DESCRIPTOR,
    surplus_descriptors = HANDOFF_ERR_SURPLUS_DESCRIPTORS,
    control_truncated = HANDOFF_ERR_CONTROL_TRUNCATED,
    wrong_length = HANDOFF_ERR_WRONG_LENGTH,
    token_mismatch = HANDOFF_ERR_TOKEN_MISMATCH,
    token_expired = HANDOFF_ERR_TOKEN_EXPIRED,
    token_not_pending = HANDOFF_ERR_TOKEN_NOT_PENDING,
    token_already_pending = HANDOFF_ERR_TOKEN_ALREADY_PENDING,
    token_collision = HANDOFF_ERR_TOKEN_COLLISION,
    full = HANDOFF_ERR_FULL,
    random = HANDOFF_ERR_RANDOM,
    peer_unknown = HANDOFF_ERR_PEER_UNKNOWN,
    peer_not_allowed = HANDOFF_ERR_PEER_NOT_ALLOWED,
    address_in_use = HANDOFF_ERR_ADDRESS_IN_USE,
    not_a_socket = HANDOFF_ERR_NOT_A_SOCKET,
    listen_failed = HANDOFF_ERR_LISTEN_FAILED,
    internal = HANDOFF_ERR_INTERNAL,
    rate_limited = HANDOFF_ERR_RATE_LIMITED,
    too_large = HANDOFF_ERR_TOO_LARGE,
    wrong_process = HANDOFF_ERR_WRONG_PROCESS,
    closed = HANDOFF_ERR_CLOSED,
    taken_back = HANDOFF_ERR_TAKEN_BACK,
    too_late = HANDOFF_ERR_TOO_LATE,
    system = HANDOFF_ERR_SYSTEM,
    no_memory = HANDOFF_ERR_NO_MEMORY,
    not_tls = HANDOFF_ERR_NOT_TLS,
    tls_key_update = HANDOFF_ERR_TLS_KEY_UPDATE,
    tls_alert = HANDOFF_ERR_TLS_ALERT,
    tls_record = HANDOFF_ERR_TLS_RECORD,
    too_many_channels = HANDOFF_ERR_TOO_MANY_CHANNELS,
};

/** Why a connection was not handed over: HANDOFF_REASON_*. */
enum class reason : handoff_reason {
    none = HANDOFF_REASON_NONE,
    client_unsupported = HANDOFF_REASON_CLIENT_UNSUPPORTED,
    policy_disabled = HANDOFF_REASON_POLICY_DISABLED,
    descriptor_pressure = HANDOFF_REASON_DESCRIPTOR_PRESSURE,
    rate_limited = HANDOFF_REASON_RATE_LIMITED,
    permission_denied = HANDOFF_REASON_PERMISSION_DENIED,
    integrity_mismatch = HANDOFF_REASON_INTEGRITY_MISMATCH,
    ack_timeout = HANDOFF_REASON_ACK_TIMEOUT,
    foreign_backend = HANDOFF_REASON_FOREIGN_BACKEND,
    backend_unavailable = HANDOFF_REASON_BACKEND_UNAVAILABLE,
    backend_busy = HANDOFF_REASON_BACKEND_BUSY,
    rejected = HANDOFF_REASON_REJECTED,
    unsupported_platform = HANDOFF_REASON_UNSUPPORTED_PLATFORM,
    broker_closed = HANDOFF_REASON_BROKER_CLOSED,
    backend_died = HANDOFF_REASON_BACKEND_DIED,
    client_gone = HANDOFF_REASON_CLIENT_GONE,
    too_large = HANDOFF_REASON_TOO_LARGE,
    kind = HANDOFF_REASON_KIND,
    too_many_channels = HANDOFF_REASON_TOO_MANY_CHANNELS,
};

/** Names a reason in lower case, for logs. */
inline const char *name(reason why) noexcept
{
    return handoff_reason_name(static_cast<handoff_reason>(why));
}

namespace detail {

// Visible: error codes compare the addresses of their categories, and a program and its shared
// libraries must have the same one.
class [[gnu::visibility("default")]] category final : public std::error_category {
  public:
    const char *name() const noexcept override { return "handoff"; }
    std::string message(int status) const override { return handoff_status_message(status); }

    std::error_condition default_error_condition(int status) const noexcept override
    {
        switch (status) {
        case HANDOFF_ERR_INVALID_ARGUMENT: return std::errc::invalid_argument;
        case HANDOFF_ERR_UNSUPPORTED: return std::errc::not_supported;
        case HANDOFF_ERR_PERMISSION_DENIED: return std::errc::permission_denied;
        case HANDOFF_ERR_BACKEND_UNAVAILABLE: return std::errc::connection_refused;
        case HANDOFF_ERR_WOULD_BLOCK: return std::errc::resource_unavailable_try_again;
        case HANDOFF_ERR_DESCRIPTOR_PRESSURE: return std::errc::too_many_files_open;
        case HANDOFF_ERR_TOO_LARGE: return std::errc::message_size;
        case HANDOFF_ERR_ADDRESS_IN_USE: return std::errc::address_in_use;
        case HANDOFF_ERR_NOT_A_SOCKET: return std::errc::not_a_socket;
        case HANDOFF_ERR_NO_MEMORY: return std::errc::not_enough_memory;
        default: return {status, *this};
        }
    }
};

}  // namespace detail

/** The category of the library's errors. The value of such an error code is the handoff_status. */
[[gnu::visibility("default")]] inline const std::error_category &error_category() noexcept
{
    // Never destroyed: the destructors of a program's own globals may still ask.
    static const detail::category &instance = *new detail::category;
    return instance;
}

inline std::error_code make_error_code(errc error) noexcept
{
    return {static_cast<int>(error), error_category()};
}

/** Turns a status into an error code. Positive ones, such as HANDOFF_NOTHING, are not errors. */
inline std::error_code make_error_code(handoff_status status) noexcept
{
    return status < 0 ? make_error_code(static_cast<errc>(status)) : std::error_code();
}

}  // namespace handoff

template <>
struct std::is_error_code_enum<handoff::errc> : std::true_type {};

namespace handoff {

#ifdef __cpp_exceptions
/** What is thrown. what() is handoff_last_error(), or code().message() if that is empty. */
class [[gnu::visibility("default")]] error : public std::system_error {
  public:
    error(const std::error_code &ec, const char *text)
        : std::system_error(ec), text_(*text != 0 ? text : ec.message())
    {
    }
    const char *what() const noexcept override { return text_.what(); }

  private:
    std::runtime_error text_;  // a string that can be copied without an exception
};
#endif

// ---- what both ends use -------------------------------------------------------------------------

/** A wait without limit, or a timeout that never comes. */
inline constexpr std::chrono::milliseconds no_timeout = std::chrono::milliseconds::max();

/** The bytes of any buffer. */
inline std::string_view bytes(const void *data, std::size_t size) noexcept
{
    return {static_cast<const char *>(data), size};
}

/**
 * A descriptor and the duty to close it. Call shutdown() before you close a connection that you
 * have adopted: while the broker has a copy, close() alone does not end the connection for the
 * client.
 */
class unique_fd {
  public:
    unique_fd() noexcept = default;
    explicit unique_fd(int fd) noexcept : fd_(fd) {}
    unique_fd(unique_fd &&other) noexcept : fd_(other.release()) {}
    unique_fd &operator=(unique_fd &&other) noexcept
    {
        reset(other.release());
        return *this;
    }
    ~unique_fd() { reset(); }

    explicit operator bool() const noexcept { return fd_ != -1; }
    int get() const noexcept { return fd_; }
    /** Gives the descriptor away: the caller closes it. */
    [[nodiscard]] int release() noexcept { return std::exchange(fd_, -1); }
    /** Closes the descriptor and takes over another one. */
    void reset(int fd = -1) noexcept
    {
        if (fd_ != -1)
            ::close(fd_);
        fd_ = fd;
    }

  private:
    int fd_ = -1;
};

namespace detail {

// Zero becomes `zero`. A negative time is over, so it becomes the shortest one.
constexpr std::uint64_t timeout_ms(std::chrono::milliseconds time, std::uint64_t zero) noexcept
{
    if (time == no_timeout)
        return HANDOFF_NO_TIMEOUT;
    const std::int64_t count = std::max<std::int64_t>(time.count(), 1);
    return time.count() == 0 ? zero : static_cast<std::uint64_t>(count);
}

constexpr std::uint32_t microseconds(std::chrono::microseconds time) noexcept
{
    constexpr std::int64_t longest = std::numeric_limits<std::uint32_t>::max();
    return static_cast<std::uint32_t>(std::clamp<std::int64_t>(time.count(), 0, longest));
}

constexpr int wait_ms(std::chrono::milliseconds time) noexcept
{
    constexpr std::int64_t longest = std::numeric_limits<int>::max();
    const std::int64_t count = std::clamp<std::int64_t>(time.count(), 0, longest);
    return time == no_timeout ? -1 : static_cast<int>(count);
}

#ifdef __cpp_exceptions
inline void check(const std::error_code &ec)
{
    if (ec)
        throw error(ec, handoff_last_error());
}

/** The throwing form of a call that takes an error code. */
template <class Call>
auto throwing(Call call)
{
    std::error_code ec;
    if constexpr (std::is_void_v<decltype(call(ec))>) {
        call(ec);
        check(ec);
    } else {
        auto result = call(ec);
        check(ec);
        return result;
    }
}
#endif

/** What a broker and a backend have in common: they own their handle in C. */
template <class Raw, class Statistics, auto Free, auto Fd, auto Dispatch, auto Wake,
          auto GetStatistics, auto LastError>
class handle {
  public:
    /** False: the handle is empty. */
    explicit operator bool() const noexcept { return raw_ != nullptr; }
    /** The C handle, which stays this object's. */
    Raw *get() const noexcept { return raw_.get(); }

    /** The descriptor to watch, which stays the handle's. */
    [[nodiscard]] int fd(std::error_code &ec) noexcept
    {
        const int fd = Fd(get());
        ec = make_error_code(fd == -1 ? handoff_last_status() : HANDOFF_OK);
        return fd;
    }

    void dispatch(std::error_code &ec) noexcept { ec = make_error_code(Dispatch(get())); }

    /**
     * Ends the wait in another thread, or the next wait. Signal handlers may call it. False: there
     * is no handle, or it belongs to another process.
     */
    bool wake() const noexcept { return Wake(get()) == HANDOFF_OK; }

    [[nodiscard]] Statistics statistics(std::error_code &ec) const noexcept
    {
        Statistics counts{};
        counts.size = sizeof counts;
        ec = make_error_code(GetStatistics(get(), &counts));
        return counts;
    }

    /**
     * A message about the last error of this handle, whichever thread it was in. For a shared
     * broker: a message about the last error of this thread.
     */
    const char *last_error() const noexcept { return LastError(get()); }

#ifdef __cpp_exceptions
    [[nodiscard]] int fd() { return throwing([&](auto &ec) { return fd(ec); }); }
    void dispatch() { throwing([&](auto &ec) { dispatch(ec); }); }
    [[nodiscard]] Statistics statistics() const
    {
        return throwing([&](auto &ec) { return statistics(ec); });
    }
#endif

  protected:
    handle() noexcept = default;

    struct free {
        void operator()(Raw *raw) const noexcept { Free(raw); }
    };
    std::unique_ptr<Raw, free> raw_;
};

/** A single-pass range of what `next` of a handle returns, until that has no result. */
template <class Handle, class Item>
class results {
  public:
    class iterator {
      public:
        using iterator_category = std::input_iterator_tag;
        using value_type = Item;
        using difference_type = std::ptrdiff_t;
        using pointer = Item *;
        using reference = Item &;

        iterator() noexcept = default;
        explicit iterator(results *from) : from_(from) { ++*this; }
        Item &operator*() const noexcept { return *from_->item_; }
        Item *operator->() const noexcept { return &*from_->item_; }
        iterator &operator++() { return from_ = from_->advance(), *this; }
        void operator++(int) { ++*this; }
        friend bool operator==(iterator a, iterator b) noexcept { return a.from_ == b.from_; }
        friend bool operator!=(iterator a, iterator b) noexcept { return a.from_ != b.from_; }

      private:
        results *from_ = nullptr;
    };

    results(Handle &handle, std::error_code *ec) noexcept : handle_(handle), ec_(ec) {}
    results(const results &) = delete;
    results &operator=(const results &) = delete;
    iterator begin() { return iterator(this); }
    iterator end() noexcept { return {}; }

  private:
    results *advance()
    {
        item_.reset();  // first: an arrival that nobody took rejects itself
#ifdef __cpp_exceptions
        item_ = ec_ == nullptr ? handle_.next() : handle_.next(*ec_);
#else
        item_ = handle_.next(*ec_);
#endif
        return item_ ? this : nullptr;
    }

    Handle &handle_;
    std::error_code *ec_;  // NULL: throws
    std::optional<Item> item_;
};

}  // namespace detail

// ---- the broker's end ---------------------------------------------------------------------------

/** The limits of a broker: handoff_broker_options. Zero is the default in every field. */
struct broker_options {
    std::size_t max_in_flight = 0;
    std::chrono::milliseconds timeout{0};
    /** How long one of several backends may take to answer. */
    std::chrono::milliseconds attempt_timeout{0};
    std::size_t failover_bytes = 0;
    std::size_t queue_bytes = 0;
    std::size_t max_failures = 0;
    std::chrono::milliseconds failure_period{0};
    std::chrono::milliseconds reconnect_min{0};
    std::chrono::milliseconds reconnect_max{0};
    /** Who may be the backend. */
    const handoff_peer_policy *policy = nullptr;
    /** HANDOFF_BROKER_SHARED: any number of threads may use the broker at once. */
    bool shared = false;
    /** How long offer_and_wait() spins before it sleeps. */
    std::chrono::microseconds spin{0};
};

/**
 * A backend for broker::add(): handoff_broker_backend. Set `path`. Zero is the default in every
 * other field.
 */
struct broker_backend {
    /** Its handoff socket; or a directory, ending in '/', in which each socket is a backend. */
    const char *path = nullptr;
    std::uint32_t weight = 0;
    /** The backend gets offers only while no other backend takes them. */
    bool backup = false;
    /** The backend gets no offers. */
    bool off = false;
    std::size_t max_in_flight = 0;
    std::size_t max_failures = 0;
    std::chrono::milliseconds failure_period{0};
};

/** What a backend does: HANDOFF_STATE_*. */
enum class phase : std::uint32_t {
    connecting = HANDOFF_STATE_CONNECTING,
    ready = HANDOFF_STATE_READY,
    draining = HANDOFF_STATE_DRAINING,
    resting = HANDOFF_STATE_RESTING,
    down = HANDOFF_STATE_DOWN,
};

/** Names what a backend does in lower case, for logs. */
inline const char *name(phase what) noexcept
{
    switch (what) {
    case phase::connecting: return "connecting";
    case phase::ready: return "ready";
    case phase::draining: return "draining";
    case phase::resting: return "resting";
    case phase::down: return "down";
    }
    return "unknown";
}

/**
 * What one of a broker's backends does and has done: handoff_broker_backend_state, and what its
 * numbers mean. Its strings are valid until the next call with the broker.
 */
struct backend_state : handoff_broker_backend_state {
    handoff::phase phase() const noexcept { return static_cast<handoff::phase>(state); }
    bool is_backup() const noexcept { return (flags & HANDOFF_BACKEND_BACKUP) != 0; }
    bool is_off() const noexcept { return (flags & HANDOFF_BACKEND_OFF) != 0; }
    /** Why the backend is down or resting. */
    std::error_code code() const noexcept { return make_error_code(status); }
    /** Offers that the backend did not adopt, for this reason. */
    std::uint64_t count(handoff::reason why) const noexcept
    {
        const auto number = static_cast<std::size_t>(why);
        return number < std::size(fallbacks) ? fallbacks[number] : 0;
    }
    /** Offers that no backend took, with this error. */
    std::uint64_t count(errc what) const noexcept
    {
        const auto number = static_cast<std::size_t>(-static_cast<std::int64_t>(what));
        return number < std::size(refusals) ? refusals[number] : 0;
    }
};

/** A connection to hand over: handoff_offer. Set at least `fd`. Everything else is copied. */
struct offer {
    /** The client's connection. Until the verdict keep it open, and out of your event loop. */
    int fd = -1;
    std::string_view preread{};
    const struct iovec *preread_iov = nullptr;
    std::size_t preread_iov_len = 0;
    std::string_view metadata{};
    const char *service = nullptr;
    const char *correlation = nullptr;
    /** How long the offer may wait for its verdict. By default, as in the broker's options. */
    std::optional<std::chrono::milliseconds> timeout{};
    /** HANDOFF_OFFER_MORE: more offers follow at once. */
    bool more = false;
    /** HANDOFF_OFFER_TLS: the kernel does the connection's TLS, in both directions. */
    bool tls = false;
};

/** What broker::offer() returns. True: there will be a verdict. False: nothing was sent. */
struct offer_result {
    /** Names the offer for broker::take_back(). */
    std::uint64_t id = 0;
    /** Why the offer was refused. */
    handoff::reason reason = handoff::reason::none;
    /** The status. broker::last_error() says in words what is wrong, and where. */
    std::error_code error{};

    explicit operator bool() const noexcept { return !error; }
    /** Whether the client can wait: broker::fd() becomes readable when an offer would be taken. */
    bool may_pass() const noexcept { return error && handoff_status_may_pass(error.value()); }
};

/** What became of an offer: handoff_verdict. */
template <class T = void>
struct verdict {
    std::uint64_t id = 0;
    T *user_data = nullptr;
    /** True: the backend owns the connection, so close(2) your copy. False: it is still yours. */
    bool adopted = false;
    handoff::reason reason = handoff::reason::none;
    bool may_have_reached_backend = false;
    /** With reason::kind: the kind of the socket, HANDOFF_KIND_*, or 0. */
    std::uint32_t kind = 0;
    /** How many backends the connection was offered to. */
    std::uint32_t attempts = 0;
    /** The path of the last of them, or "". Valid until the next call with the broker. */
    std::string_view backend{};
    /** From offer_and_wait(), if the offer was refused: as in offer_result. */
    std::error_code error{};

    /** After a fallback: whether the client can be offered again. */
    bool may_pass() const noexcept
    {
        return !adopted && handoff_reason_may_pass(static_cast<handoff_reason>(reason));
    }
};

/**
 * The broker's end of the channels to its backends. `T` is the type of the user data, which goes
 * with an offer and comes back with its verdict. The broker does not own it. Destroying a broker
 * loses the verdicts that were not taken: first close() the broker and take them.
 */
template <class T = void>
class broker
    : public detail::handle<handoff_broker, handoff_broker_statistics, handoff_broker_free,
                            handoff_broker_fd, handoff_broker_dispatch, handoff_broker_wake,
                            handoff_broker_get_statistics, handoff_broker_last_error> {
    static_assert(!std::is_const_v<T>, "the user data comes back as a T *, not as a const T *");

  public:
    using verdict_range = detail::results<broker, verdict<T>>;

    broker() noexcept {}
    /** A path that ends in '/' is a directory of backends. NULL: no backend yet, see add(). */
    broker(const char *path, const broker_options &options, std::error_code &ec) noexcept
    {
        handoff_broker_options raw = HANDOFF_BROKER_OPTIONS_INIT;
        raw.max_in_flight = options.max_in_flight;
        raw.timeout_ms = detail::timeout_ms(options.timeout, 0);
        raw.attempt_timeout_ms = detail::timeout_ms(options.attempt_timeout, 0);
        raw.failover_bytes = options.failover_bytes;
        raw.queue_bytes = options.queue_bytes;
        raw.max_failures = options.max_failures;
        raw.failure_period_ms = detail::timeout_ms(options.failure_period, 0);
        raw.reconnect_min_ms = detail::timeout_ms(options.reconnect_min, 0);
        raw.reconnect_max_ms = detail::timeout_ms(options.reconnect_max, 0);
        raw.policy = options.policy;
        raw.flags = options.shared ? HANDOFF_BROKER_SHARED : 0;
        raw.spin_us = detail::microseconds(options.spin);
        handoff_broker *made = nullptr;
        ec = make_error_code(handoff_broker_new(path, &raw, &made));
        raw_.reset(made);
    }
    broker(const char *path, std::error_code &ec) noexcept : broker(path, broker_options(), ec) {}

    /**
     * Offers a connection. A refusal is a result, even after close(), when its reason is
     * reason::broker_closed. The only errors are those that a fallback must not hide:
     * errc::invalid_argument, wrong_process and internal.
     */
    [[nodiscard]] offer_result offer(const handoff::offer &what, T *user_data,
                                     std::error_code &ec) noexcept
    {
        const handoff_offer raw = to_raw(what, user_data);
        offer_result result;
        const handoff_status status = handoff_broker_offer(get(), &raw, &result.id);
        result.reason = static_cast<handoff::reason>(reason_of(status));
        result.error = make_error_code(status);
        ec = fault(status);
        return result;
    }
    [[nodiscard]] offer_result offer(const handoff::offer &what, std::error_code &ec) noexcept
    {
        return offer(what, nullptr, ec);
    }

    /**
     * Offers a connection and waits for its verdict. A refusal is a verdict, too: not adopted.
     * After wake() the verdict is also not adopted, with reason::none.
     */
    [[nodiscard]] verdict<T> offer_and_wait(const handoff::offer &what,
                                            std::error_code &ec) noexcept
    {
        const handoff_offer raw = to_raw(what, nullptr);
        handoff_verdict got = HANDOFF_VERDICT_INIT;
        const handoff_status status = handoff_broker_offer_and_wait(get(), &raw, &got);
        if (status != HANDOFF_OK) {
            got.reason = reason_of(status);
            got.may_have_reached_backend = handoff_status_may_have_reached_backend(status);
        }
        ec = fault(status);
        verdict<T> result = from_raw(got);
        result.error = make_error_code(status);
        return result;
    }

    void flush(std::error_code &ec) noexcept { ec = make_error_code(handoff_broker_flush(get())); }

    /** Takes the next verdict, if there is one. */
    [[nodiscard]] std::optional<verdict<T>> next(std::error_code &ec) noexcept
    {
        handoff_verdict got = HANDOFF_VERDICT_INIT;
        const handoff_status status = handoff_broker_next(get(), &got);
        ec = make_error_code(status);
        return status == HANDOFF_OK ? std::optional(from_raw(got)) : std::nullopt;
    }

    /**
     * The verdicts that are there. After the loop, `ec` tells whether an error ended it: in the
     * loop, use another std::error_code.
     */
    [[nodiscard]] verdict_range verdicts(std::error_code &ec) noexcept { return {*this, &ec}; }

    /** Takes an offer back. False: too late, there is a verdict or will be one. */
    [[nodiscard]] bool take_back(std::uint64_t id, std::error_code &ec) noexcept
    {
        const handoff_status status = handoff_broker_take_back(get(), id);
        ec = make_error_code(status == HANDOFF_ERR_TOO_LATE ? HANDOFF_OK : status);
        return status == HANDOFF_OK;
    }

    /** Adds a backend or a directory of them, or changes one that the broker has. */
    void add(const broker_backend &what, std::error_code &ec) noexcept
    {
        handoff_broker_backend raw = HANDOFF_BROKER_BACKEND_INIT;
        raw.path = what.path;
        raw.weight = what.weight;
        raw.flags = (what.backup ? HANDOFF_BACKEND_BACKUP : 0u)
            | (what.off ? HANDOFF_BACKEND_OFF : 0u);
        raw.max_in_flight = what.max_in_flight;
        raw.max_failures = what.max_failures;
        raw.failure_period_ms = detail::timeout_ms(what.failure_period, 0);
        ec = make_error_code(handoff_broker_add(get(), &raw));
    }

    /** Removes a backend or a directory of them. False: the broker has none with that path. */
    bool remove(const char *path, std::error_code &ec) noexcept
    {
        const handoff_status status = handoff_broker_remove(get(), path);
        ec = make_error_code(status);
        return status == HANDOFF_OK;
    }

    /** How many small offers would be taken now. None after close(). */
    [[nodiscard]] std::size_t room(std::error_code &ec) noexcept
    {
        // This call returns no status in C. Flushing fails for the same cause.
        const std::size_t room = handoff_broker_room(get());
        ec = room > 0 ? std::error_code() : fault(handoff_broker_flush(get()));
        return room;
    }

    /**
     * The state of a backend. None: there are fewer backends. For all of them:
     *
     *     for (std::size_t i = 0; const auto state = broker.state(i); i++)
     *         report(state->path, state->phase(), state->message);
     */
    [[nodiscard]] std::optional<backend_state> state(std::size_t index,
                                                     std::error_code &ec) noexcept
    {
        backend_state got{};
        got.size = sizeof(handoff_broker_backend_state);
        const handoff_status status = handoff_broker_get_backend_state(get(), index, &got);
        ec = make_error_code(status);
        return status == HANDOFF_OK ? std::optional(got) : std::nullopt;
    }

    /** Takes every offer back and closes the channels. Then take the verdicts. */
    void close(std::error_code &ec) noexcept { ec = make_error_code(handoff_broker_close(get())); }

#ifdef __cpp_exceptions
    explicit broker(const char *path, const broker_options &options = {})
        : broker(detail::throwing([&](auto &ec) { return broker(path, options, ec); }))
    {
    }
    [[nodiscard]] offer_result offer(const handoff::offer &what, T *user_data = nullptr)
    {
        return detail::throwing([&](auto &ec) { return offer(what, user_data, ec); });
    }
    [[nodiscard]] verdict<T> offer_and_wait(const handoff::offer &what)
    {
        return detail::throwing([&](auto &ec) { return offer_and_wait(what, ec); });
    }
    void flush() { detail::throwing([&](auto &ec) { flush(ec); }); }
    [[nodiscard]] std::optional<verdict<T>> next()
    {
        return detail::throwing([&](auto &ec) { return next(ec); });
    }
    [[nodiscard]] verdict_range verdicts() noexcept { return {*this, nullptr}; }
    [[nodiscard]] bool take_back(std::uint64_t id)
    {
        return detail::throwing([&](auto &ec) { return take_back(id, ec); });
    }
    void add(const broker_backend &what) { detail::throwing([&](auto &ec) { add(what, ec); }); }
    bool remove(const char *path)
    {
        return detail::throwing([&](auto &ec) { return remove(path, ec); });
    }
    [[nodiscard]] std::size_t room()
    {
        return detail::throwing([&](auto &ec) { return room(ec); });
    }
    [[nodiscard]] std::optional<backend_state> state(std::size_t index)
    {
        return detail::throwing([&](auto &ec) { return state(index, ec); });
    }
    void close() { detail::throwing([&](auto &ec) { close(ec); }); }
#endif

  private:
    static handoff_offer to_raw(const handoff::offer &what, T *user_data) noexcept
    {
        handoff_offer raw = HANDOFF_OFFER_INIT;
        raw.fd = what.fd;
        raw.flags = (what.more ? HANDOFF_OFFER_MORE : 0u) | (what.tls ? HANDOFF_OFFER_TLS : 0u);
        raw.preread = what.preread.data();
        raw.preread_len = what.preread.size();
        raw.preread_iov = what.preread_iov;
        raw.preread_iov_len = what.preread_iov_len;
        raw.metadata = what.metadata.data();
        raw.metadata_len = what.metadata.size();
        raw.service = what.service;
        raw.correlation = what.correlation;
        raw.user_data = user_data;
        raw.timeout_ms = what.timeout ? detail::timeout_ms(*what.timeout, 1) : 0;
        return raw;
    }

    static verdict<T> from_raw(const handoff_verdict &raw) noexcept
    {
        return {raw.id, static_cast<T *>(raw.user_data), raw.outcome == HANDOFF_ADOPTED,
                static_cast<handoff::reason>(raw.reason), raw.may_have_reached_backend != 0,
                raw.kind, raw.attempts, raw.backend != nullptr ? raw.backend : "", {}};
    }

    // In C an offer after close() may be a bug. Here it is how a broker stops.
    static handoff_reason reason_of(handoff_status status) noexcept
    {
        return status == HANDOFF_ERR_CLOSED ? HANDOFF_REASON_BROKER_CLOSED
                                            : handoff_status_reason(status);
    }

    static std::error_code fault(handoff_status status) noexcept
    {
        const bool refused = status == HANDOFF_ERR_CLOSED || handoff_status_is_fallback_safe(status);
        return make_error_code(refused ? HANDOFF_OK : status);
    }
};

// ---- the backend's end --------------------------------------------------------------------------

/** The limits of a backend: handoff_backend_options. Zero is the default in every field. */
struct backend_options {
    std::uint32_t mode = 0;
    std::int32_t backlog = 0;
    const handoff_peer_policy *policy = nullptr;
    std::size_t max_channels = 0;
    std::size_t max_in_flight = 0;
    std::size_t max_offer_bytes = 0;
    std::size_t max_held_bytes = 0;
    std::uint64_t kinds = 0;
    std::size_t max_channels_per_user = 0;
    std::size_t max_kept_bytes = 0;
    /** How long accept() spins before it sleeps. */
    std::chrono::microseconds spin{0};
};

/**
 * An offer as the backend sees it: handoff_arrival. An arrival from backend::next() or arrivals()
 * that is neither adopted nor rejected rejects itself when it is destroyed. The reason is
 * reason::backend_busy, so that the broker may ask another backend. Destroy such an arrival before
 * its backend. An arrival from backend::accept() is already adopted: it owns the connection, and
 * closes it when it is destroyed, unless you take the connection with adopt().
 *
 * The bytes and names of an arrival are valid until it is rejected. After adopt(), they are valid
 * until the next backend::dispatch() or backend::accept().
 */
class arrival {
  public:
    arrival() noexcept = default;

    std::uint64_t id() const noexcept { return raw_.id; }
    /** What the broker has read from the client. It comes before what you read from the socket. */
    std::string_view preread() const noexcept { return bytes(raw_.preread, raw_.preread_len); }
    std::string_view metadata() const noexcept { return bytes(raw_.metadata, raw_.metadata_len); }
    std::string_view service() const noexcept { return text(raw_.service); }
    std::string_view correlation() const noexcept { return text(raw_.correlation); }
    /** The client speaks TLS, and the kernel does it in both directions: see handoff/tls.h. */
    bool tls() const noexcept { return raw_.tls != 0; }
    std::int32_t broker_pid() const noexcept { return raw_.broker_pid; }
    std::uint32_t broker_uid() const noexcept { return raw_.broker_uid; }
    std::uint32_t broker_gid() const noexcept { return raw_.broker_gid; }

    /**
     * Adopts the connection. If the arrival is from backend::accept(), the connection is already
     * adopted, and this only hands it out. No descriptor: the broker has taken the offer back.
     * Forget the arrival.
     */
    [[nodiscard]] unique_fd adopt(std::error_code &ec) noexcept
    {
        ec.clear();
        if (accepted_)
            return std::move(accepted_);
        if (problem() != nullptr) {
            ec = errc::invalid_argument;
            return {};
        }
        int fd = -1;
        const handoff_status status = handoff_backend_adopt(held_.get(), raw_.id, &fd);
        if (status == HANDOFF_OK)
            (void)held_.release();
        else
            ec = forget(status == HANDOFF_ERR_TAKEN_BACK ? HANDOFF_OK : status);
        return unique_fd(fd);
    }

    /**
     * Rejects the arrival: the broker serves the client another way. An arrival from
     * backend::accept() can no longer be rejected: errc::invalid_argument.
     */
    void reject(handoff::reason why, std::error_code &ec) noexcept
    {
        if (problem() != nullptr) {
            ec = errc::invalid_argument;
            return;
        }
        const auto raw = static_cast<handoff_reason>(why);
        ec = forget(handoff_backend_reject(held_.get(), raw_.id, raw));
    }
    void reject(std::error_code &ec) noexcept { reject(handoff::reason::rejected, ec); }

#ifdef __cpp_exceptions
    [[nodiscard]] unique_fd adopt()
    {
        if (!accepted_)
            require_undecided();
        return detail::throwing([&](auto &ec) { return adopt(ec); });
    }
    void reject(handoff::reason why = handoff::reason::rejected)
    {
        require_undecided();
        detail::throwing([&](auto &ec) { reject(why, ec); });
    }
#endif

  private:
    friend class backend;

    struct rejecting {
        std::uint64_t id;
        void operator()(handoff_backend *backend) const noexcept
        {
            handoff_backend_reject(backend, id, HANDOFF_REASON_BACKEND_BUSY);
        }
    };

    /** Why there is nothing to decide; NULL if there is. */
    const char *problem() const noexcept
    {
        if (held_)
            return nullptr;
        return raw_.fd != -1 ? "the arrival is already adopted by accept()"
                             : "the arrival is empty, or already adopted or rejected";
    }

#ifdef __cpp_exceptions
    void require_undecided() const
    {
        if (const char *const text = problem())
            throw error(errc::invalid_argument, text);
    }
#endif

    static std::string_view text(const char *name) noexcept { return name ? name : ""; }

    std::error_code forget(handoff_status status) noexcept
    {
        if (status == HANDOFF_OK) {
            (void)held_.release();
            raw_ = HANDOFF_ARRIVAL_INIT;
        }
        return make_error_code(status);
    }

    handoff_arrival raw_ = HANDOFF_ARRIVAL_INIT;
    std::unique_ptr<handoff_backend, rejecting> held_{nullptr, rejecting{0}};
    unique_fd accepted_;
};

/** The backend's end of the channels of one handoff socket. */
class backend
    : public detail::handle<handoff_backend, handoff_backend_statistics, handoff_backend_free,
                            handoff_backend_fd, handoff_backend_dispatch, handoff_backend_wake,
                            handoff_backend_get_statistics, handoff_backend_last_error> {
  public:
    using arrival_range = detail::results<backend, arrival>;

    backend() noexcept {}

    /** Makes a handoff socket and listens on it. */
    [[nodiscard]] static backend listen(const char *path, const backend_options &options,
                                        std::error_code &ec) noexcept
    {
        return make(handoff_backend_listen, path, options, ec);
    }
    [[nodiscard]] static backend listen(const char *path, std::error_code &ec) noexcept
    {
        return listen(path, backend_options(), ec);
    }

    /** Listens on a socket that somebody else made. It is duplicated. */
    [[nodiscard]] static backend listen_on(int fd, const backend_options &options,
                                           std::error_code &ec) noexcept
    {
        return make(handoff_backend_listen_on, fd, options, ec);
    }
    [[nodiscard]] static backend listen_on(int fd, std::error_code &ec) noexcept
    {
        return listen_on(fd, backend_options(), ec);
    }

    /** Waits for an arrival and adopts it. None: the time is up, or wake() ended the wait. */
    [[nodiscard]] std::optional<arrival> accept(std::chrono::milliseconds wait,
                                                std::error_code &ec) noexcept
    {
        arrival result;
        ec = make_error_code(
            handoff_backend_accept(get(), detail::wait_ms(wait), &result.raw_));
        result.accepted_.reset(result.raw_.fd);
        return result.accepted_ ? std::optional(std::move(result)) : std::nullopt;
    }
    [[nodiscard]] std::optional<arrival> accept(std::error_code &ec) noexcept
    {
        return accept(no_timeout, ec);
    }

    /** Takes the next arrival, if there is one. */
    [[nodiscard]] std::optional<arrival> next(std::error_code &ec) noexcept
    {
        arrival result;
        const handoff_status status = handoff_backend_next(get(), &result.raw_);
        ec = make_error_code(status);
        if (status != HANDOFF_OK)
            return std::nullopt;
        result.held_ = {get(), arrival::rejecting{result.raw_.id}};
        return result;
    }

    /**
     * The arrivals that are there. Adopt or reject them, or move them elsewhere and do that later.
     *
     *     backend.dispatch();
     *     for (auto &arrival : backend.arrivals())
     *         if (has_room())                             // otherwise it rejects itself
     *             if (auto client = arrival.adopt())      // otherwise the broker took it back
     *                 serve(std::move(client), arrival.preread());
     *
     * After the loop, `ec` tells whether an error ended it: in the loop, use another
     * std::error_code.
     */
    [[nodiscard]] arrival_range arrivals(std::error_code &ec) noexcept { return {*this, &ec}; }

    void drain(std::error_code &ec) noexcept { ec = make_error_code(handoff_backend_drain(get())); }

#ifdef __cpp_exceptions
    [[nodiscard]] static backend listen(const char *path, const backend_options &options = {})
    {
        return detail::throwing([&](auto &ec) { return listen(path, options, ec); });
    }
    [[nodiscard]] static backend listen_on(int fd, const backend_options &options = {})
    {
        return detail::throwing([&](auto &ec) { return listen_on(fd, options, ec); });
    }
    [[nodiscard]] std::optional<arrival> accept(std::chrono::milliseconds wait = no_timeout)
    {
        return detail::throwing([&](auto &ec) { return accept(wait, ec); });
    }
    [[nodiscard]] std::optional<arrival> next()
    {
        return detail::throwing([&](auto &ec) { return next(ec); });
    }
    [[nodiscard]] arrival_range arrivals() noexcept { return {*this, nullptr}; }
    void drain() { detail::throwing([&](auto &ec) { drain(ec); }); }
#endif

  private:
    template <class Call, class Where>
    static backend make(Call call, Where where, const backend_options &options,
                        std::error_code &ec) noexcept
    {
        handoff_backend_options raw = HANDOFF_BACKEND_OPTIONS_INIT;
        raw.mode = options.mode;
        raw.backlog = options.backlog;
        raw.policy = options.policy;
        raw.max_channels = options.max_channels;
        raw.max_in_flight = options.max_in_flight;
        raw.max_offer_bytes = options.max_offer_bytes;
        raw.max_held_bytes = options.max_held_bytes;
        raw.kinds = options.kinds;
        raw.max_channels_per_user = options.max_channels_per_user;
        raw.max_kept_bytes = options.max_kept_bytes;
        raw.spin_us = detail::microseconds(options.spin);
        handoff_backend *made = nullptr;
        ec = make_error_code(call(where, &raw, &made));
        backend result;
        result.raw_.reset(made);
        return result;
    }
};

}  // namespace handoff

#endif  // HANDOFF_HPP
