/*
 * handoff/raw.h: the raw layer. One descriptor and its token travel in one message; the calls keep
 * no state between them but what you pass in. The rules that hold for every call are in handoff.h.
 *
 * Most programs want a channel, handoff/broker.h and handoff/backend.h: it does all of this, for
 * many connections at once and without blocking. The raw layer is for peers that can only call
 * sendmsg(2): a message is the 16 bytes of a token with one descriptor attached (SCM_RIGHTS of
 * unix(7)), an acknowledgement is 20 bytes.
 *
 * Different threads may use different sockets at once. No call raises SIGPIPE. A signal does not end
 * a wait. As `wait_ms`, 0 does not wait; as `timeout_ms`, it is the default.
 *
 * Made by cbindgen from src/ffi; do not edit.
 */
