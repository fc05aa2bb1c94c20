"""Faults of real processes: `ipnext explain` names the reason, and the part, region and host that it lies at."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from ipnext.model.api.resources import ChangeView, StatusExplanation
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.e2e

Snapshots = Callable[[float], Mapping[str, Path]]

HOST_MEMORY_BYTES = 1_000_000
"""Less than any host takes by itself."""


@pytest.fixture
def quick(platform: Any, pair_manifest: str) -> Iterator[str]:
    """The model with a short deadline, for what fails by it; afterwards as it was, with what serves."""
    text = pair_manifest.replace("deadlineSeconds: 180", "deadlineSeconds: 8")
    yield text
    settle(platform, pair_manifest)


def settle(platform: Any, text: str) -> None:
    """Apply a manifest and wait until the change that it asks for has ended."""
    for applied in platform.client.apply(text):
        if applied.change is not None:
            done = platform.client.wait_change(applied.change.id, timeout_seconds=PATIENCE_SECONDS)
            assert done.state == "done", done


def fails(platform: Any, parts: Mapping[str, Path]) -> StatusExplanation:
    """Publish what does not come through; the explanation of it."""
    return failed(platform, platform.client.publish("pair", parts))


def failed(platform: Any, change: ChangeView) -> StatusExplanation:
    """The explanation of a change that does not come through."""
    done = platform.client.wait_change(change.id, timeout_seconds=PATIENCE_SECONDS)
    assert done.state in {"refused", "rolled_back"}, done
    told = explained(platform)
    assert told.reason == done.reason
    return told


def explained(platform: Any) -> StatusExplanation:
    return platform.client.explain("pair")


def places(told: StatusExplanation) -> dict[str, str]:
    """Level -> subject of the links between the step and the cause."""
    assert [link.level for link in told.chain][-1] == "cause"
    assert told.advice
    return {link.level: link.subject for link in told.chain if link.level in {"part", "region", "host"}}


def answers(platform: Any, region: str) -> bool:
    try:
        return bool(platform.ask(region).status_code == 200)
    except httpx.HTTPError:
        return False


@contextmanager
def suspended(process: psutil.Process) -> Iterator[None]:
    process.suspend()
    try:
        yield
    finally:
        process.resume()


@contextmanager
def killed_again_and_again(find: Callable[[], list[psutil.Process]]) -> Iterator[None]:
    """Kill what `find` gives for as long as the context is open."""
    stop = threading.Event()

    def kill() -> None:
        while not stop.wait(0.01):
            for process in find():
                with suppress(psutil.Error):
                    process.kill()

    thread = threading.Thread(target=kill)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def found_soon(*words: str, but: set[int]) -> list[psutil.Process]:
    """Before a process that starts within a fraction of a second is ready.

    Nothing but the command lines of processes that are not among `but` is read: this is called again at once.
    """
    found = []
    for pid in set(psutil.pids()) - but:
        with suppress(OSError, psutil.Error):
            command = Path(f"/proc/{pid}/cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            if all(word in command for word in words):
                found.append(psutil.Process(pid))
    return found


def test_a_file_that_is_not_in_the_store_is_the_part_s(platform: Any, make_snapshots: Snapshots) -> None:
    client = platform.client
    client.pause("pair", reason="to take a file away")
    parts = make_snapshots(501.0)
    change = client.publish("pair", parts)
    snapshot = max((s for s in client.snapshots("pair") if s.part == "first"), key=lambda found: found.number)
    lost = next(file for file in snapshot.manifest.files if file.path.endswith(".safetensors"))
    (platform.state / "artifacts" / "blobs" / lost.sha256).unlink()
    client.resume("pair")
    client.wait_change(change.id, timeout_seconds=PATIENCE_SECONDS)

    told = explained(platform)
    assert (told.reason, places(told)) == ("ArtifactMissing", {"part": "first"})
    assert lost.path in "".join(link.message for link in told.chain)


def test_a_host_without_memory_for_a_part_is_named(
    platform: Any, make_snapshots: Snapshots, pair_manifest: str
) -> None:
    small = pair_manifest.replace(
        "name: second, hardware", f"name: second, memoryBytes: {HOST_MEMORY_BYTES}, hardware"
    ).replace("deadlineSeconds: 180", "deadlineSeconds: 180, refresh: replace")
    small = small.rstrip() + "\n  validation: {skip: {memory: the host is to refuse it}}\n"
    settle(platform, small)
    try:
        told = fails(platform, make_snapshots(502.0))
        assert told.reason == "OutOfMemory"
        found = places(told)
        assert found["part"] == "second"
        assert found["region"] in platform.endpoints["gateways"]
        assert found["host"].startswith("pair.second.cpu.")
        assert "MB" in told.message
    finally:
        settle(platform, pair_manifest)


def test_a_canary_that_answers_nan_is_named_with_its_region(
    platform: Any, make_snapshots: Snapshots, pair_manifest: str
) -> None:
    """Finite weights pass the validation; the answers of this mark overflow."""
    patient = pair_manifest.replace("deadlineSeconds: 180", "deadlineSeconds: 180, gate: {minRequests: 20}")
    settle(platform, patient)
    stop = threading.Event()

    def ask(region: str) -> None:
        while not stop.wait(0.05):
            with suppress(Exception):
                platform.ask(region, x=3.0e38)

    threads = [threading.Thread(target=ask, args=(region,)) for region in platform.endpoints["gateways"]]
    for thread in threads:
        thread.start()
    try:
        told = fails(platform, make_snapshots(3.0e38))
    finally:
        stop.set()
        for thread in threads:
            thread.join()
        settle(platform, pair_manifest)
    assert told.reason == "GateFailed"
    assert places(told).keys() == {"region"}


@pytest.mark.parametrize("how", ["stopped", "killed"])
def test_a_region_whose_agent_does_not_answer_is_named(
    platform: Any, make_snapshots: Snapshots, quick: str, how: str
) -> None:
    """The deadline comes with the publish, before which what was applied gives way.

    Nothing that succeeds runs under it.
    """
    platform.client.pause("pair", reason="to give it less time")
    platform.client.apply(quick)
    words = ("ipnext.infra.agent", "--region eu-west")
    agent = platform.child(*words)
    others = set(psutil.pids()) - {agent.pid}
    find = lambda: found_soon(*words, str(platform.state), but=others)  # noqa: E731 - a name for both
    with suspended(agent) if how == "stopped" else killed_again_and_again(find):
        change = platform.client.publish("pair", make_snapshots(510.0 + len(how)))
        platform.client.resume("pair")
        told = failed(platform, change)
        assert (told.reason, places(told)) == ("RegionUnreachable", {"region": "eu-west"})
    until(lambda: answers(platform, "eu-west"))


def test_a_host_that_is_killed_again_and_again_is_named(
    platform: Any, make_snapshots: Snapshots, pair_manifest: str
) -> None:
    settle(platform, pair_manifest.replace("deadlineSeconds: 180", "deadlineSeconds: 180, refresh: replace"))
    words = ("serving.host", "--region us-east", "pair.second.cpu.")
    before = set(psutil.pids())
    try:
        with killed_again_and_again(lambda: found_soon(*words, str(platform.state), but=before)):
            told = fails(platform, make_snapshots(520.0))
        assert told.reason == "CrashLoop"
        found = places(told)
        assert (found["part"], found["region"]) == ("second", "us-east")
        assert found["host"].startswith("pair.second.cpu.")
        assert "SIGKILL" in told.message
    finally:
        settle(platform, pair_manifest)


def test_the_command_line_tells_the_chain_and_the_advice(platform: Any) -> None:
    environment = {**os.environ, "IPNEXT_API_URL": platform.endpoints["api"]}
    done = subprocess.run(
        [sys.executable, "-m", "ipnext.cli", "explain", "pair"],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    told = explained(platform)
    for text in (told.reason, *(link.level for link in told.chain)):
        assert text in done.stdout
