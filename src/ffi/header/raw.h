/*
 * handoff/raw.h: the raw layer. One descriptor and its token travel in one message. The calls have
 * no state except what you pass in. The rules that hold for every call are in handoff.h.
 *
 * Most programs want a channel instead (handoff/broker.h and handoff/backend.h). A channel does all
 * of this for many connections at once, without blocking. The raw layer is for peers that can only
 * call sendmsg(2). A message is the 16 bytes of a token with one descriptor attached (SCM_RIGHTS of
 * unix(7)). An acknowledgement is 20 bytes.
 *
 * Different threads may use different sockets at once, but only one thread at a time may use a
 * socket.
 *
 * Made by cbindgen from src/ffi; do not edit.
 */
