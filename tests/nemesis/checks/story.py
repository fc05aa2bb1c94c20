"""A history, read: windows of faults, what the store said at the end, who served when. Pure."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from tests.nemesis.checks.spans import Drained, Span, drains, freezes, pauses
from tests.nemesis.history import Event, ended

FINAL = frozenset({"done", "refused", "rolled_back", "superseded"})
SAMPLES_SECONDS = 5.0
"""How far from a request a sample may be that says where it went: while an agent is away there are none."""
HALF_BACK = "not all of the way back was done then"
PLACING = frozenset({"publish", "apply", "move"})
"""Kinds of changes that place a model."""
SENDING = PLACING | {"rollback", "repair"}
"""Kinds of changes that send users to the generation that serves."""
REPAIR_SECONDS = 60.0
"""How long the plan that repairs a disaster may take."""


def _ahead(event: Event) -> float:
    """How far the wall clock is ahead of the monotonic one."""
    return event.wall - event.at


@dataclass(frozen=True)
class Window:
    """From a fault's beginning until all was whole again. `end` is None where it never was. Monotonic seconds."""

    fault: Mapping[str, Any]
    begin: float
    end: float | None

    @property
    def touches_data(self) -> bool:
        return bool(self.fault["touches_data"])

    def covers(self, begin: float, end: float) -> bool:
        """Whether any moment of an interval lies within."""
        return begin <= (self.end if self.end is not None else float("inf")) and end >= self.begin

    def __str__(self) -> str:
        where = f" in {self.fault['region']}" if self.fault.get("region") else ""
        return f"{self.fault['kind']} of {self.fault['role']}{where}"


@dataclass(frozen=True)
class Change:
    """A change as the store has it at the end. Times in seconds since 1970."""

    id: str
    model: str
    kind: str
    sequence: int
    generation: int | None
    state: str
    message: str
    created: float
    finished: float | None


@dataclass(frozen=True)
class Asked:
    """One request of a user, from its invocation to its end."""

    begin: Event
    end: Event

    @property
    def model(self) -> str:
        return str(self.begin.value["model"])

    @property
    def region(self) -> str:
        return str(self.begin.value["region"])

    @property
    def answered(self) -> bool:
        return self.end.type == "ok"


class Story:
    """All that the rules ask of a history."""

    def __init__(self, history: Sequence[Event]) -> None:
        self.history = history

    def last(self, f: str) -> Event | None:
        """The last remark of a kind."""
        return next((event for event in reversed(self.history) if event.f == f), None)

    @cached_property
    def meta(self) -> Mapping[str, Any]:
        found = self.last("begin")
        return found.value if found else {}

    @cached_property
    def dump(self) -> Mapping[str, Any]:
        """What the store and Temporal said at the end."""
        found = self.last("dump")
        return found.value if found else {"models": {}, "workflows": []}

    @cached_property
    def windows(self) -> list[Window]:
        healed = {event.value["number"]: event.at for event in self.history if event.f == "healed"}
        begun = [event for event in self.history if event.f == "fault"]
        return [Window(event.value, event.at, healed.get(event.value["number"])) for event in begun]

    @cached_property
    def terminated(self) -> set[str]:
        """Runs that the nemesis has ended, by their own ids."""
        return {event.value["run"] for event in self.history if event.f == "fault" and "run" in event.value}

    def met_limit(self, run: Mapping[str, Any]) -> bool:
        """Whether the server may have terminated a run because its history was longer than it allowed at that time."""
        closed, windows = run["closed"], (window for window in self.windows if window.fault["kind"] == "limit")
        begun = {event.value["number"]: event for event in self.history if event.f == "fault"}
        return closed is not None and any(
            run.get("events", 0) >= window.fault["events"]
            and window.covers(at := closed - _ahead(begun[window.fault["number"]]), at)
            for window in windows
        )

    @cached_property
    def pauses(self) -> list[Span]:
        return pauses(self.history)

    @cached_property
    def freezes(self) -> list[Span]:
        return freezes(self.history)

    @cached_property
    def drains(self) -> list[Drained]:
        return drains(self.history)

    def lost(self, region: str, begin: float, end: float) -> bool:
        """Whether a region was declared lost at any moment of an interval, and nothing asked of its gateway."""
        return any(drain.region == region and drain.lost(begin, end) for drain in self.drains)

    @cached_property
    def runs(self) -> Mapping[str, Mapping[str, Any]]:
        """Workflow id -> what Temporal says of it."""
        return {run["id"]: run for run in self.dump["workflows"]}

    @cached_property
    def requests(self) -> list[Asked]:
        return [Asked(begin, end) for begin, end in ended(self.history, "predict")]

    @cached_property
    def answers(self) -> list[Asked]:
        return [asked for asked in self.requests if asked.answered]

    def reached(self, asked: Asked) -> set[str]:
        """Regions that the gateway sent requests like this one to, around that time."""
        begin, end = asked.begin.at - SAMPLES_SECONDS, asked.end.at + SAMPLES_SECONDS
        near = (event.value["tables"] for event in self.samples if begin <= event.at <= end)
        tables = (found.get(asked.region, {}).get(asked.model, ()) for found in near)
        return {region for shares in tables for region, _, _ in shares}

    def dropped(self, asked: Asked) -> bool:
        """Whether the gateway had nowhere to send requests like this one, around that time."""
        begin, end = asked.begin.at - SAMPLES_SECONDS, asked.end.at + SAMPLES_SECONDS
        near = (event.value["tables"] for event in self.samples if begin <= event.at <= end)
        return any(found.get(asked.region, {}).get(asked.model) == [] for found in near)

    @cached_property
    def samples(self) -> list[Event]:
        """What the watch saw of the regions."""
        return [event for event in self.history if event.f == "sample"]

    @cached_property
    def changes(self) -> Mapping[str, list[Change]]:
        """Model -> its changes by sequence."""
        found = {name: [Change(**row) for row in told["changes"]] for name, told in self.dump["models"].items()}
        return {name: sorted(rows, key=lambda change: change.sequence) for name, rows in found.items()}

    def acknowledged(self, f: str) -> list[Event]:
        """The positive answers to requests of a kind."""
        return [event for event in self.history if event.f == f and event.type == "ok"]

    @cached_property
    def marks(self) -> Mapping[str, float]:
        """Digest -> the mark that the snapshot puts into its answers."""
        published = [event for event in self.history if event.f == "publish" and event.type == "invoke"]
        return {digest: float(mark) for event in published for digest, mark in event.value["parts"].values()}

    def expected_marks(self, model: str, generation: int) -> list[float] | None:
        """What the parts of a generation answer, in the order of the parts.

        None for one that the store does not know.
        """
        told = self.dump["models"][model]
        snapshots = told["generations"].get(str(generation))
        if snapshots is None:
            return None
        digests = [told["digests"][f"{part}/{snapshots[part]}"] for part in self.meta["parts"][model]]
        return [self.marks[digest] for digest in digests]

    def serving(self, model: str, wall: float) -> int | None:
        """The generation that the last change that was done by then had brought."""
        found = None
        for change in sorted(self._done(model), key=lambda change: change.finished or 0.0):
            if change.finished is not None and change.finished <= wall:
                found = change.generation
        return found

    def allowed(self, model: str, begin: float, end: float) -> set[int]:
        """Generations that may answer a request that lasted from `begin` to `end`.

        What serves, and what a change brings.
        """
        found = {self.serving(model, begin), self.serving(model, end)}
        for change in self.changes[model]:
            over = change.finished is not None and change.finished < begin
            if change.created <= end and (not over or self._stays(change, begin)):
                found.add(change.generation)
        return {generation for generation in found if generation is not None}

    def left(self, model: str, begin: float, end: float) -> set[int]:
        """Generations that may answer as well, for a disaster left nothing else.

        They were allowed when the region was declared lost, and what serves was ready in no other one since, but for
        replicas that a change of since then brings: it moves the users wave by wave. They are sent to what was left
        until such a change is done (docs/drain.md, Disaster).
        """
        return set[int]().union(*(self._left_by(drain, model, begin, end) for drain in self.drains if drain.disaster))

    def ended(self, drain: Drained, model: str, kinds: frozenset[str], otherwise: float) -> float:
        """When the first change of some kinds that was asked after a drain was done, in seconds since 1970."""
        since = (c for c in self.changes[model] if c.kind in kinds and c.state == "done" and c.created >= drain.wall)
        return min((c.finished for c in since if c.finished is not None), default=otherwise)

    def _left_by(self, drain: Drained, model: str, begin: float, end: float) -> set[int]:
        returned = drain.wall - drain.asked + drain.returned
        if end < drain.wall or begin > self.ended(drain, model, SENDING, returned + REPAIR_SECONDS):
            return set()
        serving = self.serving(model, begin)
        samples = (event for event in self._between(drain.wall, end) if not self._is_sending(drain, model, event.wall))
        elsewhere = (self._ready(event, model, serving) - {drain.region} for event in samples)
        return set() if any(elsewhere) else self.allowed(model, drain.wall, drain.wall)

    def _is_sending(self, drain: Drained, model: str, wall: float) -> bool:
        """Whether a change that was asked after a drain was open at a moment."""
        since = (c for c in self.changes[model] if c.kind in SENDING and drain.wall <= c.created <= wall)
        return any(change.finished is None or change.finished >= wall for change in since)

    def _between(self, begin: float, end: float) -> list[Event]:
        """Samples of a time in seconds since 1970, and the last one before it."""
        before = [event for event in self.samples if event.wall < begin][-1:]
        return before + [event for event in self.samples if begin <= event.wall <= end]

    def _ready(self, sample: Event, model: str, generation: int | None) -> set[str]:
        """Regions in which every part of a generation is ready."""
        ready = {
            region: {part for name, part, held in rows if name == model and generation in held}
            for region, rows in sample.value["replicas"].items()
        }
        return {region for region, parts in ready.items() if parts >= set(self.meta["parts"].get(model, ()))}

    def _stays(self, change: Change, wall: float) -> bool:
        """Whether a change left traffic on its generation that no later one has moved yet; it says so."""
        if HALF_BACK not in change.message:
            return False
        later = (c for c in self._done(change.model) if c.sequence > change.sequence)
        return all(other.finished is None or other.finished > wall for other in later)

    def _done(self, model: str) -> list[Change]:
        rows = [change for change in self.changes[model] if change.state == "done" and change.generation is not None]
        return [change for change in rows if change.kind in {"publish", "rollback", "apply"}]

    @cached_property
    def _applied(self) -> list[tuple[Event, Event]]:
        return list(ended(self.history, "apply"))

    def demand(self, model: str, wall: float) -> float:
        """The least demand that capacity has to be there for.

        A higher one counts once the change that brings it is done.
        """
        told: list[tuple[float, int | None]] = [(self.meta["demand"], 0)]
        for begin, end in self._applied:
            if begin.value["model"] == model and end.type != "fail" and begin.wall <= wall:
                told.append((begin.value["qps"], end.value.get("sequence")))
        carriers = [c for c in self.changes[model] if c.state == "done" and c.kind in {"publish", "apply"}]
        done = [c.sequence for c in carriers if c.finished is not None and c.finished <= wall]
        reached = 0
        for index, (_, sequence) in enumerate(told):
            if sequence is not None and any(number >= sequence for number in done):
                reached = index
        return min(qps for qps, _ in told[reached:]) * (1.0 - self._dip(model, wall))

    def _dip(self, model: str, wall: float) -> float:
        """What of its throughput a model may lack at a moment.

        Only while a change is under way that said that it dips.
        """
        most = float(self.meta.get("dips", {}).get(model, 0.0))
        said = (c for c in self.changes[model] if most and "dips:" in c.message and c.created <= wall)
        return most if any(c.finished is None or c.finished >= wall for c in said) else 0.0
