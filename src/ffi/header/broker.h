/*
 * handoff/broker.h: the broker's end of a channel. The rules that hold for every call are in
 * handoff.h.
 *
 * Make a broker, watch its descriptor, offer clients. When the descriptor is readable, call
 * dispatch, then next until it returns HANDOFF_NOTHING. Each accepted offer has exactly one
 * verdict, unless you take it back. Programs without an event loop call offer_and_wait instead.
 *
 * Made by cbindgen from src/ffi; do not edit.
 */
