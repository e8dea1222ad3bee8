/* The wait for an acknowledgement fails: the broker takes the message back, or says that it could
   not. */
#include "wire.h"

#include <errno.h>
#include <sys/syscall.h>

static void refuse_poll(unsigned error)
{
#ifdef SYS_poll
    refuse_system_call(SYS_poll, error);
#endif
    refuse_system_call(SYS_ppoll, error);
}

/* The broker's socket stays open here, as its broker's would. */
static void assert_backend_may_serve(struct wire *wire, bool may_serve)
{
    int fd;
    handoff_raw_token token;
    assert_ok(handoff_raw_receive(wire->backend, 0, &token, &fd));
    assert_status(handoff_raw_ack_accept(wire->backend, &token),
                  may_serve ? HANDOFF_OK : HANDOFF_ERR_END_OF_STREAM);
    close(fd);
}

static void attempt_whose_wait_fails_is_a_fallback_that_the_backend_cannot_adopt(void **state)
{
    struct wire *wire = *state;
    pid_t child = start_child();
    if (child == 0) {
        handoff_raw_verdict verdict = HANDOFF_RAW_VERDICT_INIT;
        refuse_poll(ENOMEM);
        child_assert(handoff_raw_attempt(wire->broker, wire->connection, &wire->token, 0,
                                         &verdict) == HANDOFF_OK);
        child_assert(verdict.outcome == HANDOFF_FALLBACK && verdict.may_have_reached_backend);
        child_assert(verdict.cause == HANDOFF_ERR_END_OF_STREAM && errno == ENOMEM);
        _exit(0);
    }
    assert_child_succeeds(child);
    assert_backend_may_serve(wire, false);
}

static void acknowledgement_that_has_arrived_is_found_although_the_wait_fails(void **state)
{
    struct wire *wire = *state;
    assert_ok(handoff_raw_ack_accept(wire->backend, &wire->token));
    pid_t child = start_child();
    if (child == 0) {
        handoff_raw_verdict verdict = HANDOFF_RAW_VERDICT_INIT;
        refuse_poll(ENOMEM);
        child_assert(handoff_raw_attempt(wire->broker, wire->connection, &wire->token, 0,
                                         &verdict) == HANDOFF_OK);
        child_assert(verdict.outcome == HANDOFF_ADOPTED && verdict.cause == HANDOFF_OK);
        _exit(0);
    }
    assert_child_succeeds(child);
}

static void message_that_cannot_be_taken_back_is_not_the_brokers_to_serve(void **state)
{
    struct wire *wire = *state;
    pid_t child = start_child();
    if (child == 0) {
        handoff_raw_ack ack = HANDOFF_RAW_ACK_INIT;
        handoff_raw_verdict verdict = HANDOFF_RAW_VERDICT_INIT;
        refuse_poll(ENOMEM);
        refuse_system_call(SYS_shutdown, EPERM);
        child_assert(handoff_raw_attempt(wire->broker, wire->connection, &wire->token, 0,
                                         &verdict) == HANDOFF_OK);
        child_assert(verdict.outcome == HANDOFF_ADOPTED);
        child_assert(verdict.reason == HANDOFF_REASON_INTEGRITY_MISMATCH);
        child_assert(verdict.cause == HANDOFF_ERR_TOO_LATE && errno == EPERM);
        handoff_status status = handoff_raw_ack_wait(wire->broker, &wire->token, 0, &ack);
        child_assert(status == HANDOFF_ERR_TOO_LATE && !handoff_status_is_fallback_safe(status));
        _exit(0);
    }
    assert_child_succeeds(child);
    assert_backend_may_serve(wire, true);
}

int main(void)
{
    const struct CMUnitTest tests[] = {
        WIRE_TEST(attempt_whose_wait_fails_is_a_fallback_that_the_backend_cannot_adopt),
        WIRE_TEST(acknowledgement_that_has_arrived_is_found_although_the_wait_fails),
        WIRE_TEST(message_that_cannot_be_taken_back_is_not_the_brokers_to_serve),
    };
    return RUN_TESTS(tests);
}
