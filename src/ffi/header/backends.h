/*
 * handoff/backends.h: several backends of one broker, and the state of each. The rules that hold
 * for every call are in handoff.h.
 *
 * A broker has the backend that it was made with, and those that you add. If it is made with a
 * directory, each worker that listens there is a backend. Offer, and take verdicts, as with one
 * backend: the broker chooses, and goes on to the next one if a backend does not answer. Everything
 * here is the broker's: it says what a broker knows of a backend.
 *
 * Made by cbindgen from src/ffi; do not edit.
 */
