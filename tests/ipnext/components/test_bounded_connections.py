"""Connections of the control plane to agents: no longer used than their certificates are valid."""

from types import SimpleNamespace

import pytest

from ipnext.components import bounded_http
from ipnext.components.bounded_http import CONNECTION_SECONDS, _DeadlineStream
from ipnext.components.certificates import is_past


@pytest.mark.parametrize(("now", "past"), [(99.9, False), (100.0, True), (200.0, True)])
def test_a_certificate_is_past_from_its_end_on(now, past):
    assert is_past(SimpleNamespace(peer_until=100.0), now) is past


def test_a_connection_without_a_certificate_has_no_end():
    assert not is_past(None, 1e12)


class Stream:
    """An open connection with a component, whose certificate is valid until then."""

    def __init__(self, until):
        self.link = SimpleNamespace(peer_until=until)

    def get_extra_info(self, info):
        return self.link if info == "ssl_object" else False


@pytest.mark.parametrize(
    ("seconds", "until", "closed"),
    [(1.0, 2000.0, False), (1.0, 1000.5, True), (CONNECTION_SECONDS + 1, 2000.0, True)],
    ids=["young and valid", "expired", "old"],
)
def test_a_connection_that_is_old_or_expired_is_used_no_more(monkeypatch, seconds, until, closed):
    clock = SimpleNamespace(now=1000.0)
    monkeypatch.setattr(bounded_http, "time", SimpleNamespace(time=lambda: clock.now, monotonic=lambda: clock.now))
    stream = _DeadlineStream(Stream(until))
    clock.now += seconds
    assert stream.get_extra_info("is_readable") is closed
