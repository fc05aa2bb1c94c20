"""Carries faults out, waits until all is whole again, and writes both into the history."""

import asyncio
import itertools
import random
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import suppress

import psutil
from temporalio.service import RPCError, RPCStatusCode

from ipnext.names import COLLECT_SCHEDULE
from ipnext.temporal import connect
from tests.nemesis.builds import Build, build_of, set_build
from tests.nemesis.faults.limits import EVENTS, set_limit
from tests.nemesis.faults.network import Partition
from tests.nemesis.faults.schedule import ROUND_SECONDS, SHORT_SECONDS, WORKFLOWS, Fault
from tests.nemesis.history import Recorder
from tests.nemesis.stack import EVERY_ONE, Stack
from tests.waiting import PATIENCE_SECONDS

APPEAR_SECONDS = 30.0
"""How long a process to strike is waited for."""


class Nemesis:
    """Strikes one fault after another. `whole_since` says whether users and regions saw all well since a moment."""

    def __init__(self, recorder: Recorder, stack: Stack, whole_since: Callable[[float], bool]) -> None:
        self._recorder = recorder
        self._stack = stack
        self._whole_since = whole_since
        self._numbers = itertools.count(1)

    def strike(self, fault: Fault) -> bool:
        """One fault, and the wait until it is healed. False where all did not become whole again in time."""
        number = next(self._numbers)
        strike = {
            "kill": self._kill,
            "stop": self._stop,
            "partition": self._cut,
            "boundary": self._reached,
            "terminate": self._terminate,
            "away": self._cut,
            "build": self._swap,
            "limit": self._limit,
        }[fault.kind]
        if not strike(fault, number):
            return True
        return self._healed(number, time.monotonic())

    def strike_each(self, places: Iterable[str], pause: float, tell: Callable[[str], None]) -> bool:
        """The worker killed at each place once, in the order in which runs come there; then the wait, as above.

        Before each, a run of a workflow is terminated and an hourly one is started, so that runs come to every place.
        """
        left, draw = list(places), random.Random(0)
        while left:
            time.sleep(pause)
            asyncio.run(_trigger(self._stack.endpoints["temporal_address"], COLLECT_SCHEDULE))
            ended, number = Fault("terminate", draw.choice(WORKFLOWS), seconds=SHORT_SECONDS), next(self._numbers)
            terminated = [number] if self._terminate(ended, number) else []
            struck = self._first_reached(left)
            left = [place for place in left if place not in struck]
            for place in struck or left:
                tell(f"boundary {place}{'' if struck else ': not reached'}")
            if not self._all_healed(struck, terminated):
                return False
            if not struck:
                return True
        return True

    def _first_reached(self, places: Sequence[str]) -> list[str]:
        """Arm places until a worker comes to one of them; more than one where it came to two at the same moment."""
        workers = self._stack.found("worker")
        for place in places:
            self._stack.arm(place)
        deadline = time.monotonic() + ROUND_SECONDS
        while not any(map(self._stack.struck, places)) and time.monotonic() < deadline:
            time.sleep(0.01)
        if any(map(self._stack.struck, places)):
            self._gone(workers)
        struck = [place for place in places if self._stack.struck(place)]
        for place in set(places) - set(struck):
            self._stack.disarm(place)
        for place in places if not struck else ():
            self._recorder.note("not_reached", number=next(self._numbers), **Fault("boundary", place).document())
        return struck

    def _all_healed(self, struck: Sequence[str], before: Sequence[int]) -> bool:
        """Write down that workers were killed at these places; wait until that and the faults before are healed."""
        numbers = [next(self._numbers) for _ in struck]
        for number, place in zip(numbers, struck, strict=True):
            self._begin(Fault("boundary", place), number)
        since = time.monotonic()
        return all(self._healed(number, since) for number in (*before, *numbers))

    def _begin(self, fault: Fault, number: int, **more: object) -> None:
        self._recorder.note("fault", number=number, **fault.document(), **more)

    def _kill(self, fault: Fault, number: int) -> bool:
        victims = self._victims(fault, number)
        if not victims:
            return False
        self._begin(fault, number, pids=[victim.pid for victim in victims])
        for victim in victims:
            victim.kill()
        psutil.wait_procs(victims, timeout=PATIENCE_SECONDS)
        return True

    def _stop(self, fault: Fault, number: int) -> bool:
        victims = self._victims(fault, number)
        if not victims:
            return False
        self._begin(fault, number, pids=[victim.pid for victim in victims])
        for victim in victims:
            victim.suspend()
        time.sleep(fault.seconds)
        for victim in victims:
            try:
                victim.resume()
            except psutil.NoSuchProcess:  # whoever watches it has lost patience
                self._recorder.note("replaced", number=number, pid=victim.pid)
        return True

    def _cut(self, fault: Fault, number: int) -> bool:
        ports = self._stack.ports(fault.role, fault.region)
        partition = Partition(ports, fault.cut or "both")
        self._begin(fault, number, ports=ports)
        partition.begin()
        time.sleep(fault.seconds)
        partition.heal()
        return True

    def _terminate(self, fault: Fault, number: int) -> bool:
        """End a run of a kind of workflow from outside, as soon as there is one."""
        deadline = time.monotonic() + fault.seconds
        while time.monotonic() < deadline:
            ended = asyncio.run(_terminated(self._stack.endpoints["temporal_address"], fault))
            if ended is not None:
                self._begin(fault, number, run=ended)
                return True
            time.sleep(0.05)
        self._recorder.note("not_reached", number=number, **fault.document())
        return False

    def _swap(self, fault: Fault, number: int) -> bool:
        """End a process as a rolling update does, and have it started as the other build."""
        names = self._stack.names(fault.role)
        name = names[fault.draw % len(names)]
        build: Build = "this" if build_of(self._stack.state, name) == "next" else "next"
        victim = self._stack.process_of(name)
        if victim is None:
            self._recorder.note("not_reached", number=number, **fault.document())
            return False
        self._begin(fault, number, name=name, build=build, pids=[victim.pid])
        set_build(self._stack.state, name, build)
        victim.terminate()
        _, alive = psutil.wait_procs([victim], timeout=PATIENCE_SECONDS)
        return not alive

    def _limit(self, fault: Fault, number: int) -> bool:
        """Have the server start anew with a limit of histories, and after a while as usual.

        Runs beyond it are terminated.
        """
        if not self._stack.found("temporal"):
            self._recorder.note("not_reached", number=number, **fault.document())
            return False
        self._begin(fault, number, events=EVENTS)
        for events, seconds in ((EVENTS, fault.seconds), (None, 0.0)):
            set_limit(self._stack.state, events)
            victims = self._stack.found("temporal")
            for victim in victims:
                victim.terminate()
            psutil.wait_procs(victims, timeout=PATIENCE_SECONDS)
            time.sleep(seconds)
        return True

    def _reached(self, fault: Fault, number: int) -> bool:
        """Arm a place and wait for a run to come there: the worker that does kills itself."""
        workers = self._stack.found("worker")
        self._stack.arm(fault.role)
        deadline = time.monotonic() + fault.seconds
        while not self._stack.struck(fault.role):
            if time.monotonic() > deadline:
                self._stack.disarm(fault.role)
                self._recorder.note("not_reached", number=number, **fault.document())
                return False
            time.sleep(0.01)
        self._begin(fault, number, pids=[victim.pid for victim in self._gone(workers)])
        return True

    def _victims(self, fault: Fault, number: int) -> list[psutil.Process]:
        """The processes to strike; one of a role may just be starting, or be one of many.

        A drained region has no hosts.
        """
        deadline = time.monotonic() + APPEAR_SECONDS
        while not (found := self._stack.found(fault.role, fault.region)):
            if time.monotonic() > deadline:
                self._recorder.note("not_reached", number=number, **fault.document())
                return []
            time.sleep(0.05)
        return found if fault.role in EVERY_ONE else [random.Random(fault.draw).choice(found)]

    def _gone(self, workers: list[psutil.Process]) -> list[psutil.Process]:
        """Those that are no more, once one of them is; any of them may have come to a place."""
        deadline = time.monotonic() + APPEAR_SECONDS
        while True:
            gone, _ = psutil.wait_procs(workers, timeout=0)
            if gone or time.monotonic() > deadline:
                return gone
            time.sleep(0.01)

    def _healed(self, number: int, since: float) -> bool:
        deadline = since + PATIENCE_SECONDS
        while not (self._whole_since(since) and self._stack.control_ready()):
            if time.monotonic() > deadline:
                return False
            time.sleep(0.05)
        self._recorder.note("healed", number=number, seconds=time.monotonic() - since)
        return True


async def _terminated(address: str, fault: Fault) -> str | None:
    """The run that was ended: its own id, for a workflow id is used again. None if there is none."""
    client = await connect(address=address)
    query = f"WorkflowType = '{fault.role}' AND ExecutionStatus = 'Running'"
    found = sorted([(run.id, run.run_id) async for run in client.list_workflows(query)])
    if not found:
        return None
    workflow_id, run_id = random.Random(fault.draw).choice(found)
    try:
        await client.get_workflow_handle(workflow_id, run_id=run_id).terminate("by the nemesis")
    except RPCError as error:
        if error.status is RPCStatusCode.NOT_FOUND:  # it has ended, and the list lags behind
            return None
        raise
    return run_id


async def _trigger(address: str, schedule: str) -> None:
    """Start what a schedule starts each hour; nothing where Temporal is just away."""
    with suppress(RPCError, RuntimeError):
        client = await connect(address=address)
        await client.get_schedule_handle(schedule).trigger()
