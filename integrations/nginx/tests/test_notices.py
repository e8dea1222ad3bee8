"""The lines at the level `notice` that say what has become of a backend: each worker writes one when
something has changed, and none for each attempt to connect or each client."""

import collections
import re
import unittest

from harness import wait_until
from test_backends import ANY, Fleet, Http, Stream

UP = "{path}: it takes connections"
RESTS = "{path}: it has failed too often, and gets one connection at a time as a trial"
# What the library says when a channel ends, or cannot be made.
DOWN = ".*{path}.*"


class Notices:
    def begin(self, server=""):
        self.start_fleet({"a": ""}, server=server, main="error_log notices notice;")
        self.told_lines = collections.Counter()
        self.assert_news(UP)

    def lines(self):
        """(worker, what it says) of each line about a backend."""
        with open(f"{self.directory}/notices", encoding="utf-8") as file:
            found = re.findall(r'\[notice\] (\d+)#\d+: handoff to "fleet": (.*)', file.read())
        return collections.Counter((int(worker), text) for worker, text in found)

    def news(self):
        return list((self.lines() - self.told_lines).elements())

    def assert_news(self, *patterns):
        """Since this was called last each worker has written these lines, and no others."""
        wait_until(lambda: len(self.news()) >= len(patterns) * 2, f"each worker says {patterns}")
        path = re.escape(f"{self.folder()}/a.sock")
        for worker in self.nginx.workers():
            said = [text for writer, text in self.news() if writer == worker]
            self.assertEqual(len(said), len(patterns), said)
            for text, pattern in zip(said, patterns):
                self.assertRegex(text, f"^{pattern.format(path=path)}$")
        self.told_lines = self.lines()

    def wait_for_attempts(self):
        """Each worker tries to connect, in vain, some times more."""
        before = self.told("a")["failed_connects"]
        wait_until(lambda: self.told("a")["failed_connects"] >= before + 6, "attempts to connect")

    def test_backend_that_ends_and_comes_again_is_told_once_each_time(self):
        self.expected.append(ANY)
        self.begin()
        for _ in range(2):
            self.fleet["a"].kill()
            self.assert_news(DOWN)
            self.ask_all(20)
            self.wait_for_attempts()
            self.assertEqual(self.news(), [])
            self.start_one("a")
            self.wait_for("a")
            self.assert_news(UP)

    def test_backend_that_rests_is_told_once_whatever_its_trials_come_to(self):
        self.expected.append(ANY)
        self.begin("handoff_timeout 50ms;")
        self.fleet["a"].hold()
        wait_until(lambda: self.ask_all(16) and self.states()["a"] == {"resting": 2},
                   "both workers have it rest")
        self.assert_news(RESTS)
        refused = self.told("a")["fallbacks"]
        wait_until(lambda: self.ask_all(8) and self.told("a")["fallbacks"] != refused,
                   "a trial has failed")
        self.assertEqual(self.news(), [])
        self.fleet["a"].release()
        wait_until(lambda: self.ask_all(8) and self.states()["a"] == {"ready": 2},
                   "a trial has ended the rest")
        self.assert_news(UP)


class HttpNotices(Http, Notices, Fleet):
    pass


class StreamNotices(Stream, Notices, Fleet):
    pass


if __name__ == "__main__":
    unittest.main()
