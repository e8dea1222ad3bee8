/*
 * handoff/backends.h: several backends of one broker, and the state of each. The rules that hold
 * for every call are in handoff.h.
 *
 * A broker has the backend that it was made with, and those that you add. If it is made with a
 * directory, each worker that listens there is a backend. Offer and take verdicts as with one
 * backend: the broker chooses a backend, and goes on to the next if that does not answer.
 * Everything here is on the broker's side: it tells what a broker knows about a backend.
 *
 * Made by cbindgen from src/ffi; do not edit.
 */
