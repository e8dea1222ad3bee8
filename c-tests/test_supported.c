/* Whether the system has what the library needs: asked here, and where a part of it is missing. */
#define _GNU_SOURCE
#include "channel.h"

#include <errno.h>
#include <string.h>
#include <sys/socket.h>
#include <sys/syscall.h>

#if !HANDOFF_SUPPORTED
#error "the library says that it does not work on Linux"
#endif

static void system_that_runs_the_tests_is_supported(void **state)
{
    (void)state;
    assert_ok(handoff_supported());
}

/* In a child, where a system call fails from now on. */
static void assert_supported_without(unsigned int call, int error, handoff_status expected,
                                     const char *missing)
{
    pid_t child = start_child();
    if (child == 0) {
        refuse_system_call(call, (unsigned)error);
        child_assert(handoff_supported() == expected);
        child_assert(errno == error);
        child_assert(strstr(handoff_last_error(), missing) != NULL);
        _exit(0);
    }
    assert_child_succeeds(child);
}

static void system_that_lacks_something_is_unsupported_and_it_is_named(void **state)
{
    (void)state;
    const handoff_status unsupported = HANDOFF_ERR_UNSUPPORTED;
    assert_supported_without(SYS_memfd_create, ENOSYS, unsupported, "memfd_create");
    assert_supported_without(SYS_memfd_create, EPERM, unsupported, "memfd_create");
    assert_supported_without(SYS_socket, EAFNOSUPPORT, unsupported, "SOCK_SEQPACKET");
    assert_supported_without(SYS_epoll_create1, ENOSYS, unsupported, "epoll");
    assert_supported_without(SYS_timerfd_create, ENOSYS, unsupported, "timerfd_create");
    assert_supported_without(SYS_eventfd2, ENOSYS, unsupported, "eventfd");
}

static void system_whose_memory_cannot_be_sealed_is_unsupported(void **state)
{
    (void)state;
    assert_supported_without(SYS_fcntl, EINVAL, HANDOFF_ERR_UNSUPPORTED, "F_ADD_SEALS");
}

static void process_at_its_limit_does_not_know(void **state)
{
    (void)state;
    const handoff_status pressure = HANDOFF_ERR_DESCRIPTOR_PRESSURE;
    assert_supported_without(SYS_memfd_create, EMFILE, pressure, "memfd_create");
    assert_supported_without(SYS_socket, ENFILE, pressure, "SOCK_SEQPACKET");
    rlim_t limit = allow_no_more_descriptors();
    handoff_status status = handoff_supported();
    int error = errno;
    allow_descriptors(limit);
    assert_status(status, pressure);
    assert_int_equal(error, EMFILE);
    assert_ok(handoff_supported());
}

/* Where it is missing, a handoff is a fallback and nothing worse. */
static void broker_without_shared_memory_has_no_channel_and_says_why(void **state)
{
    (void)state;
    char directory[64], path[80];
    handoff_backend *backend;
    int client[2];
    make_directory(directory);
    snprintf(path, sizeof path, "%.63s/socket", directory);
    assert_ok(handoff_backend_listen(path, NULL, &backend));
    make_pair(SOCK_STREAM, client);
    pid_t child = start_child();
    if (child == 0) {
        handoff_broker *broker;
        handoff_offer offer = offer_of(client[0]);
        child_assert(handoff_broker_new(path, NULL, &broker) == HANDOFF_OK);
        refuse_system_call(SYS_memfd_create, ENOSYS);
        handoff_status status = handoff_broker_offer(broker, &offer, NULL);
        child_assert(errno == ENOSYS);
        child_assert(handoff_status_is_fallback_safe(status));
        handoff_broker_free(broker);
        _exit(0);
    }
    assert_child_succeeds(child);
    close(client[0]);
    close(client[1]);
    handoff_backend_free(backend);
    remove_directory(directory);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        TEST(system_that_runs_the_tests_is_supported),
        TEST(system_that_lacks_something_is_unsupported_and_it_is_named),
        TEST(system_whose_memory_cannot_be_sealed_is_unsupported),
        TEST(process_at_its_limit_does_not_know),
        TEST(broker_without_shared_memory_has_no_channel_and_says_why),
    };
    return RUN_TESTS(tests);
}
