/* The listening socket of `handoff broker`. */
#ifndef HANDOFF_LISTEN_H
#define HANDOFF_LISTEN_H

#include <stddef.h>
#include <sys/socket.h>

/* Listens at HOST:PORT, [HOST]:PORT, :PORT or unix:PATH; or takes fd:NUMBER, a socket that listens
 * already. The socket does not block. Returns -1 after a message, or WRONG_ADDRESS if there can be
 * no such address. */
enum { WRONG_ADDRESS = -2 };
int listen_at(const char *address);

/* Removes the file of the socket, if it has one and that is still its own. To be called before the
 * socket is closed: until then no other file can have its inode number. */
void remove_file(void);

/* "127.0.0.1:8080", "[::1]:8080", "unix:/run/app.sock" or "unix:". */
void describe_address(const struct sockaddr *address, socklen_t len, char *text, size_t size);

#endif
