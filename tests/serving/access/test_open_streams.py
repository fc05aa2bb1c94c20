"""Streams are checked again while they last, each one for itself."""

import asyncio

import pytest

from serving.access import open_streams
from serving.access.open_streams import OpenStreams
from serving.http.messages import Request
from tests.waiting import eventually


class Guard:
    """Admits what is in `admitted`; the check of `broken` raises."""

    def __init__(self, *admitted):
        self.admitted = set(admitted)

    def is_still_admitted(self, _, model):
        if model == "broken":
            raise RuntimeError(model)
        return model in self.admitted


@pytest.fixture
def streams(monkeypatch):
    monkeypatch.setattr(open_streams, "CHECK_SECONDS", 0.01)
    found = OpenStreams(Guard("kept"))
    yield found
    found.close()


async def test_a_stream_that_can_not_be_cut_or_checked_keeps_no_other_one_open(streams):
    cut = []

    def fails():
        cut.append("fails")
        msg = "the transport is gone"
        raise RuntimeError(msg)

    request = Request("POST", "/v1/completions", {})
    streams.add(request, "kept", lambda: cut.append("kept"))
    streams.add(request, "refused", fails)
    streams.add(request, "broken", lambda: cut.append("broken"))
    streams.add(request, "refused", lambda: cut.append("last"))
    await eventually(lambda: len(cut) == 3)
    assert cut == ["fails", "broken", "last"]
    streams.add(request, "refused", lambda: cut.append("later"))
    await eventually(lambda: "later" in cut, why=lambda: "no further check")
    await asyncio.sleep(0)
    assert "kept" not in cut
