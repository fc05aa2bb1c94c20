"""Background work for every region: it goes on after errors, and ends without waiting for calls that hang."""

import threading

import pytest

from ipnext.errors import Unavailable
from ipnext.platform.region_poller import RegionPoller
from tests.waiting import PATIENCE_SECONDS, until


@pytest.mark.parametrize("error", [Unavailable("the store is away"), RuntimeError("a fault of its own")])
def test_an_error_does_not_end_the_work(error):
    looks = []

    def look():
        looks.append(None)
        if len(looks) < 3:
            raise error

    with RegionPoller("work", look, every_seconds=0.001, threads=1).running():
        until(lambda: len(looks) > 5)
    assert not [thread for thread in threading.enumerate() if thread.name == "work"]


def test_its_end_waits_for_no_call_that_hangs():
    begun, may_end = threading.Event(), threading.Event()

    def call():
        begun.set()
        may_end.wait(PATIENCE_SECONDS)

    poller = RegionPoller("work", lambda: None, every_seconds=PATIENCE_SECONDS, threads=1)
    with poller.running():
        hanging, waiting = poller.submit(call), poller.submit(call)
        assert begun.wait(PATIENCE_SECONDS)
    assert not hanging.done()
    assert waiting.cancelled()
    may_end.set()
    hanging.result(PATIENCE_SECONDS)
