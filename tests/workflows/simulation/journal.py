"""The pretended store: what is recorded, with the questions that the real planning code asks of a repository."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any, NamedTuple

from ipnext.errors import FenceLost, Unavailable
from ipnext.model.deployment.route_table import RouteShare
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState, QueuedChange
from ipnext.model.planning.plan import ModelProblem, ReplicaCount, TrafficShare
from ipnext.model.planning.transition import Transition, TransitionState
from ipnext.model.registry.registry import Hosting
from ipnext.store import records
from ipnext.store.unit_of_work import document

from .clock import Clock
from .infrastructure import Deployment, Key

Units = dict[tuple[str, str], float]
UNDER_WAY = frozenset({TransitionState.PLANNED, TransitionState.RUNNING})
EPOCH = datetime(2000, 1, 1, tzinfo=UTC)
"""Second 0 of every history, for code that reads dates."""


def format_manifest(manifest: Any) -> str:
    """The document of a model's manifest, with the units of its hardware."""
    parts = manifest.spec.parts
    calls = [{"name": part.name, "part": part.name, "inputs": {"x": "request.x"}} for part in parts]
    graph = {"nodes": calls, "outputs": {part.name: f"{part.name}.y" for part in parts}}
    return json.dumps(
        {
            "api_version": "ipnext/v1",
            "kind": "Model",
            "metadata": {"name": manifest.name, "owner": manifest.metadata.owner},
            "spec": {
                "parts": [
                    {
                        "name": part.name,
                        "hardware": [{"kind": o.kind, "units": o.units, "qps": o.qps} for o in part.hardware],
                    }
                    for part in parts
                ],
                "graph": graph,
                "demand": [{"region": one.region, "qps": one.qps} for one in manifest.spec.demand],
                "latency_tolerance_ms": manifest.spec.latency_tolerance_ms,
            },
        }
    )


class Table(NamedTuple):
    """A route table as stored."""

    region: str
    revision: int
    shares: tuple[RouteShare, ...]
    served: frozenset[int]
    pending: bool = False
    """No region of the simulation is one that only a newer manifest names."""


@dataclass
class Change:
    """One change as recorded."""

    id: str
    model: str
    kind: ChangeKind
    sequence: int
    ordinal: int
    """Its place among the changes of all models."""
    recorded_at: float
    generation: int | None = None
    plan_id: str | None = None
    state: ChangeState = ChangeState.RECORDED
    message: str = ""
    frozen: bool = False
    """Whether it waits for a freeze."""
    by: int | None = None
    """Sequence of the change that superseded it."""
    stopped_by: str | None = None
    """The change that preempted its run."""
    finished_at: datetime | None = None

    @property
    def queued(self) -> QueuedChange:
        """As the entity holds it."""
        return QueuedChange(
            id=self.id, kind=self.kind, sequence=self.sequence, generation=self.generation, plan_id=self.plan_id
        )


@dataclass
class Generation:
    """One generation of a model. It is validated, or is not yet."""

    number: int
    parts: tuple[str, ...]
    validated: bool = False
    serving_at: float | None = None
    layout: None = None
    hosting: Hosting | None = None
    """The parts that it served with last."""


@dataclass
class Placement:
    """What the plan in force gives one model."""

    model: str
    plan_id: str
    wishes: ModelProblem
    replicas: tuple[ReplicaCount, ...]
    traffic: tuple[TrafficShare, ...]
    revision: int = 1
    """Of the manifest that it was made by."""

    @property
    def parts(self) -> frozenset[str]:
        """Parts that it was made for."""
        return frozenset(part.part for part in self.wishes.parts)


@dataclass
class Moving:
    """A transition as stored."""

    id: str
    model: str
    generation: int
    transition: Transition
    state: TransitionState
    waves_done: int = 0
    fence: int = 0
    """Fencing token of the run that may move the model."""
    rests: bool = False
    """No step of it is under way."""
    before: Mapping[Key, Deployment] = field(default_factory=dict)
    """The replica sets when it was planned."""

    @property
    def document_before(self) -> str:
        """They, as stored."""
        sets = ({"key": key._asdict(), "replicas": d.replicas, "units": d.units} for key, d in self.before.items())
        return json.dumps({"deployments": [{**found, "engine": "torch", "qps": 1.0} for found in sets]})


@dataclass
class Record:
    """Everything of one model."""

    manifest: Any
    """The newest one."""
    refresh: str
    revision: int = 1
    """Of the newest manifest."""
    manifests: dict[int, Any] = field(default_factory=dict)
    """By revision."""
    observed: int = 0
    """The revision that the last rollout or rollback which succeeded went by."""
    refused: int | None = None
    validated: records.JudgedSpec | None = None
    accepted: records.JudgedSpec | None = None
    former: records.FormerBasis | None = None
    changes: list[Change] = field(default_factory=list)
    generations: dict[int, Generation] = field(default_factory=dict)
    deployments: dict[Key, Deployment] = field(default_factory=dict)
    tables: dict[str, Table] = field(default_factory=dict)
    transitions: list[Moving] = field(default_factory=list)
    placement: Placement | None = None
    serving: int | None = None
    retired: bool = False
    held: bool = False
    """The model is paused."""

    def __post_init__(self) -> None:
        self.manifests[self.revision] = self.manifest

    def apply_manifest(self, manifest: Any) -> int:
        """Take a newer manifest; return its revision."""
        self.revision += 1
        self.manifest = self.manifests[self.revision] = manifest
        return self.revision

    @property
    def revision_in_force(self) -> int:
        """Of the manifest in force; before the first acceptance it is the newest one."""
        return self.accepted.revision if self.accepted is not None else self.revision

    @property
    def in_force(self) -> Any:
        """The manifest that the model goes by."""
        return self.manifests[self.revision_in_force]


class Journal:
    """All models."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.records: dict[str, Record] = {}
        self.by_id: dict[str, Change] = {}
        self.plans = 0
        self.fleet_plans: set[str] = set()

    def record(self, model: str, kind: ChangeKind, now: float, **more: Any) -> Change:
        """Acknowledge a change. The same id again is the same change."""
        known = self.by_id.get(more.get("id", ""))
        if known is not None:
            return known
        record = self.records[model]
        sequence = len(record.changes) + 1
        change = Change(
            **{"id": f"{model}-{sequence}", **more},
            model=model,
            kind=kind,
            sequence=sequence,
            ordinal=self.newest + 1,
            recorded_at=now,
        )
        record.changes.append(change)
        self.by_id[change.id] = change
        return change

    def end(self, change: Change, state: ChangeState, message: str = "", by: int | None = None) -> None:
        """A change that is final stays. Its transition ends with it."""
        if change.state.final:
            return
        change.state, change.message, change.by, change.finished_at = state, message, by, self.now
        moving = self.find_transition(change.id)
        if moving is not None and moving.state in UNDER_WAY:
            moving.state = TransitionState.DONE if state is ChangeState.DONE else TransitionState.ROLLED_BACK

    @property
    def newest(self) -> int:
        """Ordinal of the newest change, 0 before the first."""
        return len(self.by_id)

    @property
    def now(self) -> datetime:
        """As a date."""
        return EPOCH + timedelta(seconds=self.clock.now)

    def check_only_mover(self, change: Change) -> None:
        """As the repository's: Unavailable while another change moves the model."""
        for other in self.records[change.model].changes:
            if other.id != change.id and self._moves(other):
                msg = f"change {other.id} still moves the model"
                raise Unavailable(msg)

    def is_moved(self, model: str) -> bool:
        """As the repository's: an open change has planned its waves, or retires the model and waits for no freeze."""
        return self.find_mover(model) is not None

    def find_mover(self, model: str) -> Change | None:
        """The change that moves a model, if one does."""
        return next(filter(self._moves, self.records[model].changes), None)

    def is_retiring(self, model: str) -> bool:
        """As the repository's: a retirement moves the model."""
        return any(map(_retires, self.records[model].changes))

    def is_settled(self, model: str) -> bool:
        """As the repository's: no change moves the model, or its transition is between two steps."""
        return not self.is_moved(model) or any(map(self._rests, self.records[model].transitions))

    def _moves(self, change: Change) -> bool:
        if change.state.final:
            return False
        if _retires(change):
            return True
        moving = self.find_transition(change.id)
        return moving is not None and moving.state is not TransitionState.REFUSED

    def _rests(self, moving: Moving) -> bool:
        planned = moving.state is TransitionState.PLANNED
        return planned or (moving.state is TransitionState.RUNNING and moving.rests)

    def check_fence(self, change_id: str, token: int) -> None:
        """As the repository's: FenceLost for a change that has ended, or a transition that was taken over."""
        moving = self.find_transition(change_id)
        if self.by_id[change_id].state.final or (moving is not None and moving.fence != token):
            msg = f"change {change_id}: a run with token {token} writes nothing more"
            raise FenceLost(msg)

    def new_plan(self) -> str:
        """The id of the next plan."""
        self.plans += 1
        return f"plan-{self.plans}"

    def find_transition(self, transition_id: str) -> Moving | None:
        """A transition, newest first."""
        return next((m for r in self.records.values() for m in reversed(r.transitions) if m.id == transition_id), None)

    def model(self, model: str) -> SimpleNamespace:
        """As the repository answers."""
        record = self.records[model]
        return SimpleNamespace(
            manifest=record.manifest,
            in_force=record.in_force,
            serving_generation=record.serving,
            retired=record.retired,
        )

    def as_measured(self, manifest: Any, _: int | None) -> Any:
        """As the repository answers where nothing was measured."""
        return manifest

    def generation(self, model: str, number: int) -> Generation:
        """As the repository answers."""
        return self.records[model].generations[number]

    def deployments(self, model: str) -> tuple[Deployment, ...]:
        """As the repository answers."""
        return tuple(self.records[model].deployments.values())

    def placement(self, model: str) -> Placement | None:
        """As the repository answers."""
        return self.records[model].placement

    def moving_models(self, *, but: str) -> list[records.ModelTransition]:
        """As the repository answers: of every other model the newest transition that may still add replicas."""
        found = []
        for model, record in sorted(self.records.items()):
            open_ones = [
                moving
                for moving in record.transitions
                if moving.state in UNDER_WAY and not self.by_id[moving.id].state.final
            ]
            if model != but and open_ones:
                newest = open_ones[-1]
                layout = record.generations[newest.generation].layout if newest.generation else None
                cut = None if layout is None else document(layout)
                wishes = document(record.placement.wishes) if record.placement else None
                found.append(
                    records.ModelTransition(
                        model,
                        document(newest.transition),
                        format_manifest(record.manifest),
                        cut,
                        wishes,
                        newest.document_before,
                    )
                )
        return found

    def shadow(self, model: str) -> None:
        """No change of the simulation has the stage."""

    def held_slots(self, models: Collection[str]) -> tuple[tuple[records.HeldSlot, ...], tuple[records.HeldSlot, ...]]:
        """As the repository answers: replica sets by the plan in force, and as they are wanted now."""
        placed, running = [], []
        for model in models:
            record = self.records[model]
            units = _units(record.placement)
            for row in record.placement.replicas if record.placement else ():
                each = units.get((row.part, row.hardware), 0.0)
                placed.append(records.HeldSlot(model, row.part, row.region, row.hardware, row.count, each))
            for key, d in record.deployments.items():
                running.append(records.HeldSlot(model, key.part, key.region, key.hardware, d.replicas, d.units))
        return tuple(placed), tuple(running)

    def units_entitled(self, *, but: str) -> Units:
        """As the repository answers: by the plan in force, or what runs where it does not know a model."""
        total: Units = {}
        for model, record in self.records.items():
            if model != but:
                _add(total, placed_units(record.placement) if record.placement else _running_units(record))
        return _round(total)

    def units_needed(self, *, but: Collection[str]) -> Units:
        """As the repository answers: of each replica set what is placed or what runs, the larger."""
        total: Units = {}
        for model, record in self.records.items():
            if model in but:
                continue
            slots = dict(_slots(record.placement))
            for key, d in record.deployments.items():
                slot = (key.part, key.region, key.hardware)
                slots[slot] = max(slots.get(slot, 0.0), d.replicas * d.units)
            for (_, region, hardware), units in slots.items():
                total[region, hardware] = total.get((region, hardware), 0.0) + units
        return _round(total)


def _retires(change: Change) -> bool:
    """As ipnext/store/changes/retirements.py."""
    return change.kind is ChangeKind.RETIRE and change.state is ChangeState.RUNNING and not change.frozen


def placed_units(placement: Placement | None) -> Units:
    """Units that a placement takes by region and hardware."""
    total: Units = {}
    for (_, region, hardware), units in _slots(placement).items():
        total[region, hardware] = total.get((region, hardware), 0.0) + units
    return total


def _slots(placement: Placement | None) -> dict[tuple[str, str, str], float]:
    if placement is None:
        return {}
    units = _units(placement)
    return {(r.part, r.region, r.hardware): r.count * units.get((r.part, r.hardware), 0.0) for r in placement.replicas}


def _units(placement: Placement | None) -> dict[tuple[str, str], float]:
    parts = placement.wishes.parts if placement else ()
    return {(part.part, option.hardware): option.units for part in parts for option in part.options}


def _running_units(record: Record) -> Units:
    total: Units = {}
    for key, d in record.deployments.items():
        total[key.region, key.hardware] = total.get((key.region, key.hardware), 0.0) + d.replicas * d.units
    return total


def _add(total: Units, more: Units) -> None:
    for row, units in more.items():
        total[row] = total.get(row, 0.0) + units


def _round(total: Units) -> Units:
    return {row: round(units, 9) for row, units in total.items()}
