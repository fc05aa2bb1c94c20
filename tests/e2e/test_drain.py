"""Regions go and come back on the whole platform, under load: planned without a request lost, a disaster at once."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, Self

import httpx
import pytest

from ipnext.model.lifecycle.regions.drain import DrainState
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.e2e

EUROPE, AMERICA = "eu-west", "us-east"


class Load:
    """One client after the other at one gateway, until it is stopped; keeps what went wrong, and when."""

    def __init__(self, platform: Any, region: str) -> None:
        self._platform, self._region = platform, region
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self.answers = 0
        self.failures: list[tuple[float, str]] = []

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def failed_since(self, moment: float) -> list[str]:
        """Failures of requests that began after a moment."""
        return [what for began, what in self.failures if began > moment]

    def _run(self) -> None:
        while not self._over.is_set():
            began = time.monotonic()
            try:
                answer = self._platform.ask(self._region)
            except httpx.HTTPError as error:
                self.failures.append((began, repr(error)))
            else:
                self.answers += 1
                if answer.status_code != 200:
                    self.failures.append((began, f"{answer.status_code}: {answer.text[:200]}"))
            self._over.wait(0.05)


@contextmanager
def loads(platform: Any, *regions: str) -> Iterator[list[Load]]:
    found = [Load(platform, region) for region in regions]
    try:
        for load in found:
            load.__enter__()
        yield found
    finally:
        for load in found:
            load.__exit__()


def regions_of(platform: Any) -> set[str]:
    return {d.key.region for d in platform.client.model("pair").deployments if d.wanted}


def on_both_sides(platform: Any, manifest: str) -> None:
    """Just room for all in both regions together: a part of America's users is answered in Europe."""
    client = platform.client
    fleet = client.fleet().spec
    small = tuple(item.model_copy(update={"units": 2}) for item in fleet.supply)
    client.put_fleet(fleet.model_copy(update={"supply": small}))
    client.apply(manifest.replace("{region: us-east, qps: 50}", "{region: us-east, qps: 150}"))
    until(lambda: destinations(platform) == {AMERICA, EUROPE})
    until(lambda: all(replan.state.final for replan in client.replans()))


def destinations(platform: Any) -> set[str]:
    """Where the gateway in America sends its users."""
    return {share.to for share in platform.client.model("pair").status.traffic.get(AMERICA, ())}


@contextmanager
def lost(platform: Any, region: str) -> Iterator[None]:
    """A region whose hosts, router and gateway are killed and whose agent does not answer; then the agent is back."""
    agent = platform.child("ipnext.infra.agent", region)
    agent.send_signal(signal.SIGSTOP)
    try:
        for process in agent.children(recursive=True):
            process.kill()
        yield
    finally:
        agent.send_signal(signal.SIGCONT)


def test_a_planned_drain_loses_no_request_at_any_gateway(platform: Any) -> None:
    client = platform.client
    leaving = min(regions_of(platform))
    staying = ({EUROPE, AMERICA} - {leaving}).pop()
    with loads(platform, leaving, staying) as (left, stays):
        asked = client.drain(leaving, reason="new racks")
        assert asked.state in {DrainState.RECORDED, DrainState.CHECKING, DrainState.DRAINING}
        drained = client.wait_drain(leaving, PATIENCE_SECONDS)
        before = left.answers, stays.answers
        until(lambda: left.answers > before[0] + 20 and stays.answers > before[1] + 20)

    assert drained.state is DrainState.DRAINED
    assert regions_of(platform) == {staying}
    assert (left.failures, stays.failures) == ([], [])
    assert min(left.answers, stays.answers) > 10
    shown = next(region for region in client.regions() if region.region == leaving)
    assert (shown.drain.state, shown.drain.reason, shown.drain.models_left) == (DrainState.DRAINED, "new racks", 0)

    client.undrain(leaving)
    assert client.wait_drain(leaving, PATIENCE_SECONDS).state is DrainState.RETURNED
    assert all(region.drain is None for region in client.regions())


def test_a_lost_region_is_answered_by_the_others_and_comes_back(platform: Any, pair_manifest: str) -> None:
    """Its users are sent elsewhere, and answered, while nothing of it answers: its agent stands still all the time."""
    client = platform.client
    on_both_sides(platform, pair_manifest)
    with loads(platform, AMERICA) as (load,):
        with lost(platform, EUROPE):
            client.drain(EUROPE, disaster=True, reason="flood")
            routed = client.wait_routed(EUROPE, PATIENCE_SECONDS)
            done = time.monotonic()
            before = load.answers
            until(lambda: load.answers > before + 100)
            client.undrain(EUROPE, reason="dry again")
        client.wait_drain(EUROPE, PATIENCE_SECONDS)
        until(lambda: platform.ask(EUROPE).status_code == 200)
        until(lambda: EUROPE in destinations(platform))

    assert routed.disaster
    assert load.failed_since(done) == [], [(round(at - done, 1), what) for at, what in load.failures][
        :: max(1, len(load.failures) // 20)
    ]
    assert EUROPE in regions_of(platform)
