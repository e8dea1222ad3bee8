/*
 * handoff/tls.h: connections whose TLS the kernel does (kTLS of Linux). The rules that hold for
 * every call are in handoff.h.
 *
 * The client speaks TLS, and you read and write plain bytes on its socket: send(2), writev(2) and
 * sendfile(2) as on any socket. Two things are different. A record other than data makes read(2)
 * and recv(2) fail with EIO, so receive with handoff_tls_receive(). And if the connection ends
 * without the alert close_notify, the client may take that for an attack, so end with
 * handoff_tls_shutdown(). On a plain socket, these calls do what recv(2) and shutdown(2) do, so the
 * same code serves both kinds.
 *
 * In an event loop, call handoff_tls_receive() with a wait_ms of 0 until it returns
 * HANDOFF_TIMED_OUT, and with epoll(7) use EPOLLET. Some kernels, such as 6.1, report a socket as
 * readable when a part of a record has come: without EPOLLET, a client that sends no more would
 * keep the loop busy. A client may also send a byte at a time, so set one deadline for all that you
 * wait for.
 *
 * A write may succeed although the client has gone: Linux 6.1 reports that once, perhaps to another
 * process that has a copy, and then goes on accepting what you send. So a stream that only writes
 * must also watch for the end of its input: receive, or stop when poll(2) reports POLLHUP, which it
 * does even if you ask for no event.
 *
 * The calls have no state except what you pass in. Different threads may use different sockets at
 * once, and one thread may receive from a socket while another writes to it.
 *
 * A session cannot continue after its client has updated its key: close(2) the connection as soon
 * as a call tells you, because poll(2) and epoll(7) may report nothing more. See docs/platforms.md,
 * KeyUpdate.
 *
 * Made by cbindgen from src/ffi; do not edit.
 */
