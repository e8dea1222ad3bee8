/* Systems that lack something: an emulator, a sandbox, an old kernel. What can be done without is done
   without, and what cannot is said. */
#define _GNU_SOURCE
#include "channel.h"
#include "wire.h"

#include <errno.h>
#include <fcntl.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#ifndef MFD_NOEXEC_SEAL
#define MFD_NOEXEC_SEAL 8U
#endif

/* An option of SOL_SOCKET that the system does not know, and how it says so. */
static int missing_option, missing_error;

/* Takes the place of the C library's. */
int getsockopt(int fd, int level, int option, void *value, socklen_t *len)
{
    if (missing_option != 0 && level == SOL_SOCKET && option == missing_option) {
        errno = missing_error;
        return -1;
    }
    return (int)syscall(SYS_getsockopt, fd, level, option, value, len);
}

/* Flags that the system demands, or does not know, of memory to share. */
static unsigned memory_demands, memory_refuses;

/* Takes the place of the C library's. What the system is made to demand, this kernel need not know. */
int memfd_create(const char *name, unsigned flags)
{
    if ((flags & memory_demands) != memory_demands || (flags & memory_refuses) != 0) {
        errno = memory_demands != 0 ? EACCES : EINVAL;
        return -1;
    }
    return (int)syscall(SYS_memfd_create, name, flags & ~memory_demands);
}

/* ---- SO_COOKIE -------------------------------------------------------------------------------- */

/* qemu in user mode says EINVAL, other emulators and sandboxes what they like. */
static const int refusals[] = {ENOPROTOOPT, EOPNOTSUPP, EINVAL, ENOSYS, EPERM};

enum { AT_THE_BROKER = 1, AT_THE_BACKEND = 2, AT_BOTH = 3 };

static struct channel channel;
static int client[2];

static void open_both(const handoff_backend_options *options)
{
    open_channel(&channel, NULL, options);
    make_pair(SOCK_STREAM, client);
}

static void close_both(void)
{
    close_channel(&channel);
    close(client[0]);
    close(client[1]);
}

static void hand_over_without_cookies(int where)
{
    for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++) {
        handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
        int fd = -1;
        missing_error = refusals[i];
        missing_option = where & AT_THE_BROKER ? SO_COOKIE : 0;
        offer_fd(&channel, client[0]);
        missing_option = where & AT_THE_BACKEND ? SO_COOKIE : 0;
        assert_ok(handoff_backend_dispatch(channel.backend));
        missing_option = 0;
        assert_true(next_arrival(channel.backend, &arrival));
        assert_ok(handoff_backend_adopt(channel.backend, arrival.id, &fd));
        assert_same_socket(fd, client[0]);
        close(fd);
        assert_adopted(&channel);
    }
}

static void connections_are_handed_over_without_cookies(void **state)
{
    (void)state;
    handoff_backend_options any = HANDOFF_BACKEND_OPTIONS_INIT;
    any.kinds = HANDOFF_KIND_ANY;
    const handoff_backend_options *options[] = {NULL, &any};
    for (int i = 0; i < 2; i++) {
        open_both(options[i]);
        hand_over_without_cookies(AT_BOTH);
        hand_over_without_cookies(AT_THE_BROKER);
        hand_over_without_cookies(AT_THE_BACKEND);
        close_both();
    }
}

static void what_is_no_socket_is_refused_without_cookies(void **state)
{
    (void)state;
    open_both(NULL);
    int ends[2];
    assert_int_equal(pipe2(ends, O_CLOEXEC), 0);
    missing_option = SO_COOKIE;
    for (size_t i = 0; i < sizeof refusals / sizeof *refusals; i++) {
        handoff_offer offer = offer_of(ends[0]);
        missing_error = refusals[i];
        assert_invalid_because(handoff_broker_offer(channel.broker, &offer, NULL), "is a pipe");
        assert_int_equal(errno, ENOTSOCK);
        offer.fd = 4711;
        assert_invalid_because(handoff_broker_offer(channel.broker, &offer, NULL), "is not open");
        assert_int_equal(errno, EBADF);
    }
    missing_option = 0;
    close(ends[0]);
    close(ends[1]);
    close_both();
}

/* The number of the descriptor belongs to something else by the time it is sent. */
static handoff_verdict offer_and_replace(int by)
{
    handoff_offer offer = offer_of(dup(client[0]));
    offer.flags = HANDOFF_OFFER_MORE;
    assert_ok(handoff_broker_offer(channel.broker, &offer, NULL));
    assert_int_equal(dup2(by, offer.fd), offer.fd);
    assert_ok(handoff_broker_flush(channel.broker));
    handoff_verdict verdict = verdict_of(&channel);
    close(offer.fd);
    return verdict;
}

static void what_arrives_and_is_no_socket_is_refused_without_cookies(void **state)
{
    (void)state;
    handoff_backend_options options = HANDOFF_BACKEND_OPTIONS_INIT;
    options.kinds = HANDOFF_KIND_ANY;
    int file = memfd_create("file", MFD_CLOEXEC);
    for (int i = 0; i < 2; i++) {
        open_both(&options);
        missing_option = i == 0 ? SO_COOKIE : 0;
        missing_error = ENOPROTOOPT;
        handoff_verdict verdict = offer_and_replace(file);
        assert_int_equal(verdict.outcome, HANDOFF_FALLBACK);
        assert_int_equal(verdict.reason, HANDOFF_REASON_INTEGRITY_MISMATCH);
        missing_option = 0;
        close_both();
    }
    close(file);
}

static void another_socket_is_still_refused_with_cookies(void **state)
{
    (void)state;
    open_both(NULL);
    assert_int_equal(offer_and_replace(client[1]).reason, HANDOFF_REASON_INTEGRITY_MISMATCH);
    close_both();
}

/* ---- what a channel cannot do without ---------------------------------------------------------- */

/* In a child: the next broker's offers are refused, and it says why, again and again. */
static void offer_is_unsupported(const char *path, int fd, int error, const char *missing)
{
    handoff_offer offer = offer_of(fd);
    handoff_broker *broker;
    child_assert(handoff_broker_new(path, NULL, &broker) == HANDOFF_OK);
    for (int i = 0; i < 2; i++) {
        child_assert(handoff_broker_offer(broker, &offer, NULL) == HANDOFF_ERR_UNSUPPORTED);
        child_assert(errno == error);
        child_assert(strstr(handoff_last_error(), missing) != NULL);
    }
    child_assert(handoff_status_reason(HANDOFF_ERR_UNSUPPORTED) ==
                 HANDOFF_REASON_UNSUPPORTED_PLATFORM);
    handoff_broker_free(broker);
}

static void broker_says_what_its_system_lacks(void **state)
{
    (void)state;
    static const struct {
        unsigned call;
        const char *name;
    } needs[] = {
        {SYS_socket, "SOCK_SEQPACKET"}, {SYS_memfd_create, "memfd_create(2)"},
        {SYS_fallocate, "fallocate(2)"}, {SYS_fcntl, "F_ADD_SEALS"},
        {SYS_epoll_create1, "epoll(7)"}, {SYS_timerfd_create, "timerfd_create(2)"},
    };
    static const int errors[] = {ENOSYS, EPERM};
    open_both(NULL);
    for (size_t i = 0; i < sizeof needs / sizeof *needs; i++) {
        for (size_t j = 0; j < 2; j++) {
            pid_t child = start_child();
            if (child == 0) {
                refuse_system_call(needs[i].call, (unsigned)errors[j]);
                offer_is_unsupported(channel.path, client[0], errors[j], needs[i].name);
                _exit(0);
            }
            assert_child_succeeds(child);
        }
    }
    close_both();
}

static void broker_says_that_its_system_does_not_know_peers(void **state)
{
    (void)state;
    open_both(NULL);
    missing_option = SO_PEERCRED;
    missing_error = ENOPROTOOPT;
    offer_is_unsupported(channel.path, client[0], ENOPROTOOPT, "SO_PEERCRED");
    missing_option = 0;
    close_both();
}

static void backend_that_could_let_nobody_in_is_not_made(void **state)
{
    (void)state;
    struct place place = make_place();
    handoff_backend *none = NULL;
    struct stat status;
    int listener = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
    assert_int_equal(bind(listener, (struct sockaddr *)&(sa_family_t){AF_UNIX}, sizeof(sa_family_t)),
                     0);
    assert_int_equal(listen(listener, 8), 0);
    missing_option = SO_PEERCRED;
    missing_error = ENOPROTOOPT;
    assert_status(handoff_backend_listen(place.path, NULL, &none), HANDOFF_ERR_UNSUPPORTED);
    assert_last_error_has("SO_PEERCRED");
    assert_status(handoff_backend_listen_on(listener, NULL, &none), HANDOFF_ERR_UNSUPPORTED);
    assert_status(handoff_supported(), HANDOFF_ERR_UNSUPPORTED);
    missing_option = 0;
    assert_null(none);
    assert_int_equal(stat(place.path, &status), -1);
    close(listener);
    remove_directory(place.directory);
}

static void backend_says_what_its_system_lacks(void **state)
{
    (void)state;
    static const unsigned calls[] = {SYS_epoll_create1, SYS_timerfd_create, SYS_eventfd2};
    struct place place = make_place();
    for (size_t i = 0; i < sizeof calls / sizeof *calls; i++) {
        pid_t child = start_child();
        if (child == 0) {
            handoff_backend *backend;
            handoff_arrival arrival = HANDOFF_ARRIVAL_INIT;
            child_assert(handoff_backend_listen(place.path, NULL, &backend) == HANDOFF_OK);
            refuse_system_call(calls[i], ENOSYS);
            child_assert(handoff_backend_fd(backend) == -1 && errno == ENOSYS);
            child_assert(handoff_backend_dispatch(backend) == HANDOFF_ERR_UNSUPPORTED);
            child_assert(handoff_backend_accept(backend, 0, &arrival) == HANDOFF_ERR_UNSUPPORTED);
            handoff_backend_free(backend);
            _exit(0);
        }
        assert_child_succeeds(child);
    }
    remove_directory(place.directory);
}

/* ---- other ways of the same system call ------------------------------------------------------- */

static void memory_that_must_not_be_executable_is_not_and_old_kernels_have_it_too(void **state)
{
    (void)state;
    memory_demands = MFD_NOEXEC_SEAL;
    open_both(NULL);
    close_both();
    memory_demands = 0;
    memory_refuses = MFD_NOEXEC_SEAL;
    open_both(NULL);
    close_both();
    memory_refuses = 0;
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(connections_are_handed_over_without_cookies),
        TEST(what_is_no_socket_is_refused_without_cookies),
        TEST(what_arrives_and_is_no_socket_is_refused_without_cookies),
        TEST(another_socket_is_still_refused_with_cookies),
        TEST(broker_says_what_its_system_lacks),
        TEST(broker_says_that_its_system_does_not_know_peers),
        TEST(backend_that_could_let_nobody_in_is_not_made),
        TEST(backend_says_what_its_system_lacks),
        TEST(memory_that_must_not_be_executable_is_not_and_old_kernels_have_it_too),
    };
    return RUN_TESTS(tests);
}
