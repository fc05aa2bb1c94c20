"""Watches the regions' agents during a run.

The samples for the capacity floor, and every process that was ever seen.
"""

import json
import threading
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, Self

import psutil

from ipnext.errors import IPnextError
from ipnext.infra.local_agents import LocalProcessInfrastructure
from ipnext.model.deployment.region_state import RegionState
from ipnext.model.deployment.replica import ReplicaPhase
from ipnext.model.deployment.route_table import RouteTable
from tests.nemesis.history import Recorder
from tests.nemesis.models import BASE_DEMAND, REPLICA_QPS
from tests.nemesis.observation.capacity_floor import shortfalls
from tests.nemesis.stack import Stack
from tests.processes import command_line

EVERY_SECONDS = 0.25


class Watch:
    """Samples in a thread of its own. `parts`: model -> its parts, of all that users ask."""

    def __init__(self, recorder: Recorder, stack: Stack, parts: Mapping[str, tuple[str, ...]]) -> None:
        self._parts = parts
        self._recorder = recorder
        self._stack = stack
        self._infrastructure = LocalProcessInfrastructure(
            stack.agents, timeout_seconds=1.5, components=stack.components
        )
        self._ending = threading.Event()
        self._thread = threading.Thread(target=self._sample, name="watch")
        self._last: tuple[float, Mapping[str, Any]] = (0.0, {})
        self.seen: dict[int, tuple[float, str]] = {}
        """Pid -> when it began, and its command line."""

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        self._thread.join(30)
        self._infrastructure.close()

    def whole_since(self, at: float) -> bool:
        """Whether a sample of after `at` has all regions with all models routed, and enough ready for all of them."""
        begun, sample = self._last
        if begun <= at or any(not set(models) >= set(self._parts) for models in sample["tables"].values()):
            return False
        everywhere = len(sample["tables"]) == len(sample["replicas"]) == len(self._stack.agents)
        return everywhere and not shortfalls(sample, self._parts, lambda _: BASE_DEMAND, REPLICA_QPS)

    def left_over(self) -> list[str]:
        """Processes of the platform that still run: those that were seen, and those that name its directory."""
        found = []
        for process in psutil.process_iter():
            line = command_line(process)
            try:
                begun, status = process.create_time(), process.status()
            except psutil.Error:
                continue
            ours = self.seen.get(process.pid, (0.0, ""))[0] == begun or f"{self._stack.state}/" in line
            if ours and status != psutil.STATUS_ZOMBIE and "tests.nemesis " not in line:
                found.append(f"{process.pid} {line}")
        return found

    def note_processes(self) -> None:
        """Remember what runs now."""
        for process in self._stack.processes():
            try:
                self.seen[process.pid] = (process.create_time(), command_line(process))
            except psutil.Error:  # it has just ended
                continue

    def _sample(self) -> None:
        with ThreadPoolExecutor(len(self._stack.agents)) as pool:
            while not self._ending.wait(EVERY_SECONDS):
                before = dict(zip(self._stack.agents, pool.map(self._observed, self._stack.agents), strict=True))
                tables = {region: self._followed(region, state) for region, state in before.items() if state}
                states = dict(zip(before, pool.map(self._observed, before), strict=True))
                replicas = {region: _held(state) for region, state in states.items() if state}
                after = {region: self._followed(region, state) for region, state in states.items() if state}
                still = {region: _same(found, after.get(region, {})) for region, found in tables.items()}
                taken = {region: _taken(state) for region, state in states.items() if state}
                event = self._recorder.note("sample", "watch", tables=still, replicas=replicas, taken=taken)
                self._last = (event.at - 2 * EVERY_SECONDS, event.value)
                self.note_processes()

    def _observed(self, region: str) -> RegionState | None:
        try:
            return self._infrastructure.observe(region)
        except IPnextError:
            return None

    def _followed(self, region: str, state: RegionState) -> dict[str, list[list[Any]]]:
        """Model -> shares of the table that this gateway follows; without those that are on their way."""
        found = {}
        for path in (self._stack.state / "regions" / region / "wanted" / "routes").glob("[!.]*.json"):
            table = _read(path)
            if table is not None and state.routes.get(table.model) == table.revision:
                found[table.model] = [[s.to, s.generation, s.fraction] for s in table.shares if s.fraction > 0]
        return found


def _read(path: Path) -> RouteTable | None:
    try:
        return RouteTable.model_validate(json.loads(path.read_bytes()))
    except FileNotFoundError:
        return None


def _held(state: RegionState) -> list[list[Any]]:
    return [[replica.key.model, replica.key.part, list(replica.ready)] for replica in state.replicas if replica.ready]


def _taken(state: RegionState) -> int:
    """Processes that are meant to run: each takes one unit of supply."""
    return sum(replica.phase is not ReplicaPhase.DRAINING for replica in state.replicas)


def _same(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    return {model: shares for model, shares in before.items() if after.get(model) == shares}
