/*
 * handoff/backends.h: several backends of one broker, and the state of each. The rules that hold for
 * every call are in handoff.h.
 *
 * A broker has the backend that it was made with. Add others, or make it with a directory in which
 * each worker's socket is a backend. Offer and take verdicts as with one.
 *
 * Made by cbindgen from src/ffi; do not edit.
 */
