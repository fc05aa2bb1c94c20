"""Heartbeats that an activity gives itself: remembered at once, sent only once it has run for a while."""

import pytest

from activities.runtime import heartbeat as alive
from activities.runtime.heartbeat import _LastWords
from activities.runtime.lease import SENT_LATE_SECONDS


class Server:
    def __init__(self):
        self.received = []

    def heartbeat(self, *details):
        self.received.append(details)


@pytest.fixture
def now(monkeypatch):
    time = [100.0]
    monkeypatch.setattr(alive, "seconds_now", lambda: time[0])
    return time


def test_an_activity_that_has_just_begun_sends_no_heartbeat_of_its_own(now):
    server = Server()
    words = _LastWords(server)
    words.heartbeat("metadata")
    now[0] += SENT_LATE_SECONDS / 2
    words.heartbeat("planning")
    assert server.received == []
    assert words.said == ("planning",)


def test_one_that_lasts_sends_what_it_says(now):
    server = Server()
    words = _LastWords(server)
    words.heartbeat("metadata")
    now[0] += SENT_LATE_SECONDS
    words.heartbeat("waits for a replica")
    assert server.received == [("waits for a replica",)]
