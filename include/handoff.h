/*
 * handoff.h: hand an accepted connection to another process on this host.
 *
 * A broker has accepted a client that a backend process should serve. libhandoff passes the
 * connection itself to the backend over a Unix socket, and tells the broker the verdict: the
 * backend has adopted the connection, or the broker still has it and serves the client another way.
 * The two sides never both serve a client. handoff(7) is the overview. docs/abi.md, installed in
 * share/doc/handoff, has the ABI promise.
 *
 *   handoff/broker.h    the broker's end of a channel: offer connections, take verdicts
 *   handoff/backends.h  several backends of one broker, and the state of each
 *   handoff/backend.h   the backend's end: take arrivals, adopt or reject them
 *   handoff/tls.h       connections whose TLS the kernel does: receive, end, session
 *   handoff/peer.h      who may connect
 *   handoff/status.h    statuses, errors, reasons, the version
 *   handoff/layout.h    constants, sizes and offsets at run time, for other languages
 *   handoff/raw.h       the raw layer: one descriptor and one token in one message
 *   handoff.hpp         the broker and the backend in C++17
 *
 * You may include a part alone. These rules hold for every call:
 *
 * - Status. A call that can fail returns a handoff_status: HANDOFF_OK (0); a positive number if
 *   there is neither a result nor an error (HANDOFF_NOTHING, HANDOFF_TIMED_OUT, HANDOFF_WOKEN); or
 *   a negative HANDOFF_ERR_*. After an error, handoff_last_error() returns a message for this
 *   thread, and errno is the system's error. If the error is not the system's, errno is 0, or one
 *   of the numbers that handoff_broker_backend_state lists at `system_errno`.
 * - Arguments. A NULL or misaligned pointer, a bad descriptor or a path that is too long is
 *   HANDOFF_ERR_INVALID_ARGUMENT, not a crash. The library cannot check where a pointer points: do
 *   not use a handle after you have freed it. Freeing NULL does nothing. Out parameters come last,
 *   except in the _init() calls, and are written only on HANDOFF_OK.
 * - Structs. Initialise each with its _INIT macro. You may reuse a struct without initialising it
 *   again. Zero is the default in every field but `size`, so `= {0}` is refused. Out-of-range
 *   values are clamped; combinations that cannot work are refused. In a language without macros,
 *   call the _init() function of a struct that you fill, and set only `size` in one that the
 *   library fills; layout.h tells sizes, offsets and values. A struct larger than the library
 *   knows is accepted if the rest is zero; otherwise the call returns HANDOFF_ERR_UNSUPPORTED. A
 *   `size` that the struct has had in no release is HANDOFF_ERR_INVALID_ARGUMENT.
 * - Descriptors. A descriptor that you pass in stays yours, open and unchanged, unless the call
 *   says otherwise. A descriptor in an out parameter is yours to close, and is close-on-exec. The
 *   descriptor that a handle returns for polling stays the handle's: remove it from your event loop
 *   before you free the handle. Keep 0, 1 and 2 open, on /dev/null if on nothing else. Otherwise
 *   the library's own descriptors may get these numbers, and what is written to standard error goes
 *   into a channel.
 * - Time, in milliseconds. `wait_ms` is how long a call may wait, as in poll(2): 0 does not wait,
 *   a negative number waits without limit. A signal does not end a wait; handoff_broker_wake() and
 *   handoff_backend_wake() do. `timeout_ms` is how long an offer may wait before it is taken
 *   back: 0 is the default, HANDOFF_NO_TIMEOUT is no limit.
 * - Threads. One thread at a time may use a broker or a backend. Threads may take turns under a
 *   mutex of your own. Two calls at once with one handle are a bug: if the library notices, the
 *   second returns HANDOFF_ERR_INVALID_ARGUMENT; if not, the behaviour is undefined. Only
 *   handoff_broker_wake(), handoff_backend_wake() and a broker with HANDOFF_BROKER_SHARED are for
 *   several threads at once. Different handles are independent. raw.h has its own rules.
 * - fork(). A broker or a backend belongs to one process: the one that uses it first. Making a
 *   handle, handoff_broker_add(), and reading states and statistics are not uses, so you can do all
 *   of these before fork(). After that, each process that uses its copy of a broker has a broker of
 *   its own. All copies of a backend are the same backend, which belongs to the first process that
 *   uses it. A child that does not call execve(2) should free its copies of the handles. In any
 *   process but the handle's own, handoff_broker_free() and handoff_backend_free() close that
 *   process's copies and do nothing else. While a child holds its copies, the other end does not
 *   notice that this process was killed, and nobody else can listen at a backend's path.
 * - The library starts no thread, installs no signal handler, raises no SIGPIPE, writes nothing to
 *   standard error (but see Memory), and does not change signal masks, the umask or the working
 *   directory. None of its calls is a cancellation point: see pthread_cancel(3).
 * - Memory. A large allocation, one whose size an option or a peer decides, is
 *   HANDOFF_ERR_NO_MEMORY if it fails. If there is no memory for even a few bytes, the Rust runtime
 *   ends the process with SIGABRT. Only then is anything written to standard error.
 */

#ifndef HANDOFF_H
#define HANDOFF_H

#include "handoff/status.h"

#include "handoff/broker.h"
#include "handoff/backends.h"
#include "handoff/backend.h"
#include "handoff/tls.h"
#include "handoff/peer.h"
#include "handoff/layout.h"
#include "handoff/raw.h"

#endif /* HANDOFF_H */
