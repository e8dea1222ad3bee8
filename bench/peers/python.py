"""Python: socket.send_fds() and socket.recv_fds(). See peer.h for what a peer does."""
import os
import resource
import selectors
import socket
import struct
import sys
import time

REQUEST, TOKEN = 200, 16


def parameter(name, otherwise):
    return int(os.environ.get(name, otherwise))


MOVE = os.environ.get("MODE") == "move"
COUNT, WARM = parameter("COUNT", 1000), parameter("WARM", 0)
IN_FLIGHT, HOLD = parameter("IN_FLIGHT", 256), parameter("HOLD", 0)
PREREAD = parameter("PREREAD", REQUEST) if MOVE else REQUEST
NO_TIME_WAIT = struct.pack("ii", 1, 0)
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 128\r\n\r\n" + b"x" * 128


class Measurement:
    """Counts handoffs, and takes the time and the processor time of those after the first WARM."""

    def __init__(self, side):
        self.side, self.done, self.marks = side, 0, []
        if WARM == 0:
            self.mark()

    def mark(self):
        usage = resource.getrusage(resource.RUSAGE_SELF)
        self.marks.append((time.monotonic_ns(), (usage.ru_utime + usage.ru_stime) * 1e9))

    def step(self):
        self.done += 1
        if self.done in (WARM, WARM + COUNT):
            self.mark()

    def finished(self):
        return self.done == WARM + COUNT

    def report(self):
        (start, cpu_start), (end, cpu_end) = self.marks
        with open("/proc/self/status") as status:
            peak = next(line.split()[1] for line in status if line.startswith("VmHWM"))
        line = f"{self.side} {end - start} {round(cpu_end - cpu_start)} {peak}\n"
        os.write(1, line.encode())  # in one piece: both sides write here


def receive_exactly(connection, size, start=b""):
    received = start
    while len(received) < size:
        part = connection.recv(size - len(received))
        if not part:
            sys.exit("python: the other side has gone")
        received += part
    return received


def backend(channel):
    if "BACKEND_CPU" in os.environ:
        os.sched_setaffinity(0, [parameter("BACKEND_CPU", 0)])
    measurement, held = Measurement("backend"), []
    while not measurement.finished():
        message, fds, _, _ = socket.recv_fds(channel, TOKEN + PREREAD, 1)
        message = receive_exactly(channel, TOKEN + PREREAD, message)
        measurement.step()
        token = message[:TOKEN]
        if len(held) < HOLD:
            held.append((token, fds[0]))
            if len(held) == HOLD:
                for token, _ in held:
                    channel.sendall(token)
            continue
        if MOVE:
            os.close(fds[0])
        else:
            with socket.socket(fileno=fds[0]) as client:
                client.sendall(ANSWER)
                client.shutdown(socket.SHUT_WR)
        channel.sendall(token)
    measurement.report()


class Broker:
    def __init__(self, channel):
        self.channel, self.measurement = channel, Measurement("broker")
        self.in_flight, self.serial, self.received = {}, 0, b""

    def offer(self, client, preread):
        token = self.serial.to_bytes(TOKEN, "little")
        self.serial += 1
        self.in_flight[token] = client
        message = token + preread
        sent = socket.send_fds(self.channel, [message], [client.fileno()])
        if sent < len(message):
            self.channel.sendall(message[sent:])

    def acknowledged(self):
        self.received += self.channel.recv(4096)
        whole = len(self.received) // TOKEN * TOKEN
        for at in range(0, whole, TOKEN):
            self.measurement.step()
            yield self.in_flight.pop(self.received[at:at + TOKEN])
        self.received = self.received[whole:]

    def move(self):
        listener = socket.create_server(("127.0.0.1", 0))
        clients, preread = [], bytes(PREREAD)
        for _ in range(min(IN_FLIGHT, WARM + COUNT)):
            if len(clients) < 2048:
                end = socket.create_connection(listener.getsockname())
                end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, NO_TIME_WAIT)
                clients += [end, listener.accept()[0]]
            self.offer(clients[-1], preread)
        while not self.measurement.finished():
            for client in self.acknowledged():
                if self.serial < WARM + COUNT:
                    self.offer(client, preread)

    def serve(self):
        listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
        print("port", listener.getsockname()[1], flush=True)
        selector = selectors.DefaultSelector()
        selector.register(listener, selectors.EVENT_READ)
        selector.register(self.channel, selectors.EVENT_READ)
        while not self.measurement.finished():
            for key, _ in selector.select():
                if key.fileobj is listener:
                    client, _ = listener.accept()
                    self.offer(client, receive_exactly(client, REQUEST))
                else:
                    for client in self.acknowledged():
                        client.close()


def main():
    most = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    ours, theirs = socket.socketpair()
    child = os.fork()
    if child == 0:
        ours.close()
        backend(theirs)
        return
    theirs.close()
    broker = Broker(ours)
    if MOVE:
        broker.move()
    else:
        broker.serve()
    broker.measurement.report()
    sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))


if __name__ == "__main__":
    main()
