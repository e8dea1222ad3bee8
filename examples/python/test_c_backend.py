#!/usr/bin/env python3
"""Tests of examples/backend.c with requests that have a body, of which it reads no more than it must.

It is beside the program that HANDOFF_BROKER names.
"""

import fcntl
import os
import termios
import unittest

import handoff
import test_http_backend

REQUEST_LEN = 4096  # the most that it takes
HEAD = b"POST /form HTTP/1.1\r\nHost: x\r\nContent-Length: 30\r\n\r\n"
BODY = b"name=value&other=another+value"


class CBackend(test_http_backend.Case):
    interpreter = ()
    program = os.path.join(os.path.dirname(os.path.abspath(test_http_backend.BROKER)), "backend")

    def assertAnswered(self, client):
        """Once, and then comes the end."""
        body = f"served by the backend {self.backend.process.pid}\n"
        self.assertEqual(client.rest().decode(),
                         f"HTTP/1.0 200 OK\r\nContent-Length: {len(body)}\r\n\r\n{body}")

    def assertCounted(self, clients):
        self.backend.terminate()
        self.assertEqual(self.backend.counted(self), {"adopted": clients, "answered": clients})

    def test_request_cut_anywhere_between_preread_and_socket(self):
        request = HEAD + BODY
        for preread_len in range(len(request) + 1):
            with self.subTest(preread_len=preread_len):
                self.assertAnswered(self.hand_over(request, preread_len, keep_copy=True))
        self.assertCounted(len(request) + 1)

    def test_head_and_body_in_pieces_after_the_preread(self):
        client, accepted = self.connect()
        self.assertTrue(self.broker.offer_and_wait(accepted, preread=HEAD[:20]).adopted)
        for at in range(20, len(HEAD + BODY), 3):
            client.send((HEAD + BODY)[at:at + 3])
            if at + 3 < len(HEAD):
                self.wait_until(lambda: fcntl.ioctl(accepted, termios.FIONREAD, bytes(4)) == bytes(4),
                                "it does not read")
        self.assertAnswered(client)

    def test_body_that_comes_after_the_answer_harms_nobody(self):
        clients = []
        for _ in range(20):
            client = self.hand_over(HEAD, keep_copy=True)
            self.assertAnswered(client)
            client.send(BODY)
            clients.append(client)
        self.assertAnswered(self.hand_over(HEAD + BODY))
        self.assertCounted(21)

    def test_request_that_it_has_no_room_for_stays_the_brokers(self):
        for length, adopted in (REQUEST_LEN, True), (REQUEST_LEN + 1, False):
            _, accepted = self.connect()
            verdict = self.broker.offer_and_wait(accepted, preread=HEAD.ljust(length, b"x"))
            self.assertEqual(verdict.adopted, adopted)
        self.assertEqual(verdict.reason, handoff.Reason.REJECTED)


if __name__ == "__main__":
    unittest.main()
