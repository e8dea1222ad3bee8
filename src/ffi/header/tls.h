/*
 * handoff/tls.h: connections whose TLS the kernel does (kTLS of Linux). The rules that hold for
 * every call are in handoff.h.
 *
 * The client speaks TLS, and you read and write plain bytes on its socket: send(2), writev(2) and
 * sendfile(2) as on any socket. Two things are different. A record other than data makes read(2)
 * and recv(2) fail with EIO, so receive with handoff_tls_receive(). And without an alert,
 * close_notify, the client may take the end for an attack, so end with handoff_tls_shutdown(). Both
 * do the plain thing on a plain socket, so that one piece of code serves both.
 *
 * In an event loop call handoff_tls_receive() with a wait_ms of 0 until it returns
 * HANDOFF_TIMED_OUT, and with epoll(7) use EPOLLET. Some kernels, such as 6.1, call a socket
 * readable when a part of a record has come: without EPOLLET a client that sends no more would keep
 * the loop busy. A client may also send a byte at a time, so give the whole of what you wait for a
 * deadline.
 *
 * A write need not fail when the client has gone: Linux 6.1 reports that once, perhaps to another
 * process with a copy, and then goes on taking what you send. So a stream that only writes must
 * watch for the end of its input, too: receive, or stop when poll(2) says POLLHUP, which it does
 * without being asked for any event.
 *
 * The calls have no state except what you pass in. Different threads may use different sockets at
 * once, and one socket may be received from in one thread and written to in another.
 *
 * You cannot continue a session whose client updates its key: close(2) the connection when you are
 * told of it, because poll(2) and epoll(7) may say nothing more. docs/platforms.md, KeyUpdate, has
 * the rest.
 *
 * Made by cbindgen from src/ffi; do not edit.
 */
