#!/usr/bin/env python3
"""A broker or a backend that does not link libhandoff: the raw layer in plain Python.

    python_peer.py backend SOCKET [COUNT]   adopt COUNT connections (default: until killed)
    python_peer.py broker SOCKET [COUNT]    offer COUNT connections (default: until killed)

Start either side of it against the other, or against a C program with libhandoff. The broker
prints the TCP port that it listens on; try it with `nc 127.0.0.1 PORT`.

What travels over one connection to the backend's Unix stream socket:

    backend -> broker   16 bytes: a token that allows the broker one message
    broker -> backend   16 bytes: the same token, with the client's descriptor attached
    backend -> broker   20 bytes: the token, 1 = accepted or 2 = rejected, a reason, 0, 0

The backend serves a client only after its acceptance was sent. A broker that stops waiting shuts
its reading side first, so that an acceptance can no longer be sent, and then looks once more.
"""

import hmac
import os
import secrets
import socket
import struct
import sys

TOKEN_LEN = 16
ACK = struct.Struct("16sBBxx")
ACCEPTED, REJECTED = 1, 2
DEADLINE_SECONDS = 5.0


def receive_exactly(channel, length, flags=0):
    """The bytes of one message, which its sender wrote in one piece."""
    data = channel.recv(length, flags)
    if len(data) != length:
        raise ConnectionError(f"{len(data)} bytes instead of {length}")
    return data


# ---- backend -------------------------------------------------------------------------------------


def receive_connection(channel, token):
    """The client's socket, if it comes with this token. Whatever else comes is closed."""
    # Room for one descriptor: the kernel drops those that do not fit, and says so.
    data, descriptors, flags, _ = socket.recv_fds(
        channel, TOKEN_LEN, 1, socket.MSG_CMSG_CLOEXEC
    )
    if (
        len(descriptors) == 1
        and not flags & socket.MSG_CTRUNC
        and hmac.compare_digest(data, token)
    ):
        return socket.socket(fileno=descriptors[0])
    for descriptor in descriptors:
        os.close(descriptor)
    raise ConnectionError("not a token that was given out, with one descriptor")


def serve_one(listener):
    channel, _ = listener.accept()
    with channel:
        channel.settimeout(DEADLINE_SECONDS)
        token = secrets.token_bytes(TOKEN_LEN)
        channel.sendall(token)
        with receive_connection(channel, token) as client:
            # Raises if the broker took the message back: then the client is not ours.
            channel.sendall(ACK.pack(token, ACCEPTED, 0))
            # The broker's copy shares this flag, so it was not ours to change before.
            client.setblocking(True)
            client.sendall(b"served by the backend in Python\n")


def backend(path, rounds):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        # The file is ours alone from the moment it exists.
        umask = os.umask(0o177)
        listener.bind(path)
        os.umask(umask)
        try:
            listener.listen()
            print("ready", flush=True)
            for _ in rounds:
                try:
                    serve_one(listener)
                    print("adopted", flush=True)
                except OSError as error:
                    print(f"not adopted: {error}", flush=True)
        finally:
            os.unlink(path)


# ---- broker --------------------------------------------------------------------------------------


def wait_for_answer(channel, token):
    """True if the backend owns the client now; False if it is still ours."""
    try:
        data = receive_exactly(channel, ACK.size)
    except TimeoutError:
        channel.shutdown(socket.SHUT_RD)
        data = receive_exactly(channel, ACK.size, socket.MSG_DONTWAIT)
    answered, kind, _reason = ACK.unpack(data)
    return hmac.compare_digest(answered, token) and kind == ACCEPTED


def offer(path, client):
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as channel:
        channel.settimeout(DEADLINE_SECONDS)
        channel.connect(path)
        token = receive_exactly(channel, TOKEN_LEN)
        # Sixteen bytes go out in one piece or not at all.
        socket.send_fds(channel, [token], [client.fileno()])
        return wait_for_answer(channel, token)


def broker(path, rounds):
    with socket.create_server(("127.0.0.1", 0)) as listener:
        print(listener.getsockname()[1], flush=True)
        for _ in rounds:
            client, _ = listener.accept()
            # Closing our copy does not end the connection while the backend has one.
            with client:
                try:
                    adopted = offer(path, client)
                except OSError:
                    adopted = False
                if not adopted:
                    client.sendall(b"served by the broker in Python\n")
            print("adopted" if adopted else "fallback", flush=True)


def main():
    roles = {"backend": backend, "broker": broker}
    if len(sys.argv) not in (3, 4) or sys.argv[1] not in roles:
        sys.exit(__doc__)
    # iter(int, 1) never ends: int() is 0.
    rounds = range(int(sys.argv[3])) if len(sys.argv) == 4 else iter(int, 1)
    roles[sys.argv[1]](sys.argv[2], rounds)


if __name__ == "__main__":
    main()
