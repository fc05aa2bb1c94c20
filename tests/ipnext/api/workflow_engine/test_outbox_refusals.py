"""The outbox ends a change only if the model's own validator refuses it.

All else is tried again, and raises an alarm.
"""

import asyncio
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from temporalio.client import WorkflowUpdateFailedError
from temporalio.exceptions import ApplicationError
from temporalio.service import RPCError, RPCStatusCode

from ipnext.api.metrics.endpoint import _outbox_metrics
from ipnext.api.workflow_engine import outbox as outbox_module
from ipnext.api.workflow_engine.outbox import MOST_AT_ONCE, Outbox
from ipnext.api.workflow_engine.port import MemoryLifecycle
from ipnext.errors import Conflict, EngineRefused, InvalidInput, IPnextError, Unavailable
from ipnext.model.lifecycle.changes.change import Change, ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.entity import ChangeAccepted
from ipnext.model.lifecycle.status import ConditionType
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.registry.registry import (
    ArtifactFile,
    GenerationState,
    Signature,
    SnapshotManifest,
    SnapshotSource,
    TensorSpec,
)
from ipnext.store.store import Store
from ipnext.temporal import reaching
from tests.waiting import eventually

SPEC = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))


class Engine(MemoryLifecycle):
    """Raises `error` for each submission while there is one."""

    def __init__(self) -> None:
        super().__init__()
        self.error: IPnextError | None = None
        self.under_way = 0
        self.most_under_way = 0
        self.gate: asyncio.Event | None = None

    async def submit(self, change: Change) -> ChangeAccepted:
        self.under_way += 1
        self.most_under_way = max(self.most_under_way, self.under_way)
        try:
            if self.gate is not None:
                await self.gate.wait()
            if self.error is not None:
                raise self.error
            return await super().submit(change)
        finally:
            self.under_way -= 1


def manifest(name: str = "ctr") -> ModelManifest:
    return ModelManifest.model_validate(
        {
            "apiVersion": "ipnext/v1",
            "kind": "Model",
            "metadata": {"name": name},
            "spec": {
                "parts": [{"name": "dense", "hardware": [{"kind": "cpu", "units": 1, "qps": 100}]}],
                "graph": {
                    "nodes": [{"name": "dense", "part": "dense", "inputs": {"x": "request.x"}}],
                    "outputs": {"score": "dense.score"},
                },
                "demand": [{"region": "north", "qps": 10}],
            },
        }
    )


def source() -> SnapshotSource:
    file = ArtifactFile(path="weights.safetensors", sha256="a" * 64, size_bytes=1)
    snapshot = SnapshotManifest(engine="torch", signature=Signature(inputs=(SPEC,), outputs=(SPEC,)), files=(file,))
    return SnapshotSource(manifest=snapshot, uri="file:///store/snapshots/a")


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Store]:
    with closing(Store.open(f"sqlite:///{tmp_path / 'record.db'}")) as opened:
        opened.migrate()
        with opened.begin() as unit:
            unit.put_model(manifest(), expected_version=None)
        yield opened


@pytest.fixture
def engine() -> Engine:
    return Engine()


@pytest.fixture
def outbox(store: Store, engine: Engine) -> Outbox:
    """Every line is due at every look."""
    return Outbox(store, engine, interval_seconds=0.0001, max_backoff_seconds=0.0001)


def publish(store: Store, change_id: str) -> Change:
    with store.begin("ctr") as unit:
        return unit.publish("ctr", {"dense": source()}, change_id=change_id)


def change_of(store: Store, change_id: str) -> Change:
    with store.read() as unit:
        return unit.change(change_id)


async def look(outbox: Outbox) -> None:
    """One look, to the end of everything that it began."""
    await outbox.submit_pending()
    await asyncio.gather(*outbox._in_flight.values())
    outbox._in_flight.clear()


def metrics_of(outbox: Outbox) -> dict[str, float]:
    return {sample.name: sample.value for family in _outbox_metrics(outbox) for sample in family.samples}


async def test_a_refusal_by_temporal_ends_no_change_and_raises_an_alarm(
    store: Store, engine: Engine, outbox: Outbox
) -> None:
    publish(store, "c1")
    engine.error = EngineRefused("Namespace default has no mapping defined for search attribute IPnextModel")

    await look(outbox)

    change = change_of(store, "c1")
    assert change.state is ChangeState.RECORDED
    assert change.message.startswith("not submitted yet: Namespace default has no mapping")
    assert "tried once since" in change.message
    assert [attempt.change_id for attempt in outbox.stuck] == ["c1"]
    assert metrics_of(outbox) == {"ipnext_outbox_stuck_changes": 1, "ipnext_outbox_refused_total": 1}

    engine.error = None
    await look(outbox)

    change = change_of(store, "c1")
    assert (change.state, change.message) == (ChangeState.QUEUED, "")
    assert outbox.stuck == ()
    assert metrics_of(outbox) == {"ipnext_outbox_stuck_changes": 0, "ipnext_outbox_refused_total": 1}


async def test_an_outage_raises_an_alarm_only_when_it_lasts(store: Store, engine: Engine, outbox: Outbox) -> None:
    publish(store, "c1")
    engine.error = Unavailable("nobody answers")

    tries = 0
    while not outbox.stuck:
        assert change_of(store, "c1").message == ""
        await asyncio.sleep(0.001)
        await look(outbox)
        tries += 1

    assert tries == 3
    assert "tried 3 times since" in change_of(store, "c1").message
    assert metrics_of(outbox)["ipnext_outbox_refused_total"] == 0


@pytest.mark.parametrize("error", [InvalidInput("it names no generation"), Conflict("the model is retired")])
async def test_a_refusal_by_the_entity_ends_change_generation_condition_and_event_together(
    store: Store, engine: Engine, outbox: Outbox, error: IPnextError
) -> None:
    first = publish(store, "c1")
    engine.error = error

    await look(outbox)

    with store.read() as unit:
        change, generation = unit.change("c1"), unit.generation("ctr", first.generation or 0)
        (ready,) = [c for c in unit.conditions("ctr") if c.type is ConditionType.READY]
        events = [(event.kind, event.message) for event in unit.events("ctr")]
    assert (change.state, change.message) == (ChangeState.REFUSED, error.message)
    assert (generation.state, generation.message) == (GenerationState.REFUSED, error.message)
    assert ready.status == "False"
    assert error.message in ready.message
    assert ("Refused", f"publish refused: {error.message}") in events

    engine.error = None
    again = publish(store, "c2")
    await look(outbox)

    assert (again.generation or 0) > (first.generation or 0)
    assert change_of(store, "c2").state is ChangeState.QUEUED


async def test_a_refusal_that_comes_late_ends_nothing(store: Store, engine: Engine, outbox: Outbox) -> None:
    change = publish(store, "c1")
    with store.begin("ctr") as unit:
        unit.update_change("c1", state=ChangeState.RUNNING, run_id="run")

    await asyncio.to_thread(outbox._mark_refused, change, "too late")

    assert change_of(store, "c1").state is ChangeState.RUNNING


async def test_no_more_than_some_submissions_are_under_way_at_a_time(
    store: Store, engine: Engine, outbox: Outbox
) -> None:
    models = [f"m{number}" for number in range(MOST_AT_ONCE + 8)]
    with store.begin() as unit:
        for name in models:
            unit.put_model(manifest(name), expected_version=None)
            unit.add_change(name, ChangeKind.RETIRE, change_id=f"retire-{name}")
    engine.gate = asyncio.Event()
    await outbox.submit_pending()
    await eventually(lambda: engine.under_way == MOST_AT_ONCE)
    for _ in range(50):
        await asyncio.sleep(0)
    engine.gate.set()
    await look(outbox)

    assert engine.most_under_way == MOST_AT_ONCE
    assert {change.model for change in engine.submitted} == set(models)


async def test_what_is_read_at_a_time_is_bounded_and_a_model_that_is_stuck_holds_up_no_other(
    store: Store, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its changes alone are more than are read at a time, and older than those of the others."""
    monkeypatch.setattr(outbox_module, "READ_AT_ONCE", 5)
    others = [f"m{number}" for number in range(12)]
    with store.begin() as unit:
        for number in range(8):
            unit.add_change("ctr", ChangeKind.APPLY, change_id=f"stuck-{number}")
        for name in others:
            unit.put_model(manifest(name), expected_version=None)
            unit.add_change(name, ChangeKind.RETIRE, change_id=f"retire-{name}")
    outbox = Outbox(store, engine, interval_seconds=60.0)
    read, submit = [], engine.submit

    async def refuse_one(change: Change) -> ChangeAccepted:
        if change.model == "ctr":
            raise Unavailable("not now")
        return await submit(change)

    def counted(*given: object) -> object:
        found = Outbox._pending(outbox, *given)
        read.append(sum(map(len, found[0].values())))
        return found

    monkeypatch.setattr(engine, "submit", refuse_one)
    monkeypatch.setattr(outbox, "_pending", counted)
    for _ in range(5):
        await look(outbox)

    assert {change.model for change in engine.submitted} == set(others)
    assert max(read) == 5
    assert [attempt.change_id for attempt in outbox._attempts._failed.values()] == ["stuck-0"]
    with store.begin() as unit:
        for number in range(8):
            unit.update_change(f"stuck-{number}", state=ChangeState.QUEUED)
    await look(outbox)
    assert not outbox._attempts.lines, "another process has submitted them"


async def test_more_changes_than_are_read_at_a_time_are_submitted_without_a_pause(
    store: Store, engine: Engine, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(outbox_module, "READ_AT_ONCE", 2)
    with store.begin() as unit:
        for number in range(7):
            unit.add_change("ctr", ChangeKind.APPLY, change_id=f"c{number}")
    async with Outbox(store, engine, interval_seconds=3600.0).running():
        await eventually(lambda: len(engine.submitted) == 7)
    assert [change.id for change in engine.submitted] == [f"c{number}" for number in range(7)]


def test_a_line_waits_longer_after_each_failure_and_another_change_begins_again() -> None:
    now = [0.0]
    attempts = outbox_module.Attempts(first_seconds=1, most_seconds=5, clock=lambda: now[0])
    waits = []
    for _ in range(4):
        attempts.note_failure("ctr", "c1", None)
        begun = now[0]
        while not attempts.due("ctr"):
            now[0] += 0.5
        waits.append(now[0] - begun)
    assert waits == [1, 2, 4, 5]
    assert attempts.note_failure("ctr", "c2", None).tries == 1
    attempts.keep(set())
    assert attempts.due("ctr")
    assert attempts.stuck() == ()


def rpc(status: RPCStatusCode) -> RPCError:
    return RPCError("said so", status, b"")


FINAL = {
    "our validator": (WorkflowUpdateFailedError(ApplicationError("no", type="InvalidInput")), InvalidInput),
    "our handler": (WorkflowUpdateFailedError(ApplicationError("no", type="Conflict")), Conflict),
    "decoding": (
        WorkflowUpdateFailedError(ApplicationError("Failed decoding arguments", type="RuntimeError")),
        EngineRefused,
    ),
    "untyped": (WorkflowUpdateFailedError(ApplicationError("workflow update failed")), EngineRefused),
    "no cause": (WorkflowUpdateFailedError(ValueError("?")), EngineRefused),
    "invalid argument": (rpc(RPCStatusCode.INVALID_ARGUMENT), EngineRefused),
    "no namespace": (rpc(RPCStatusCode.NOT_FOUND), EngineRefused),
    "no permission": (rpc(RPCStatusCode.PERMISSION_DENIED), EngineRefused),
    "unknown": (rpc(RPCStatusCode.UNKNOWN), EngineRefused),
    "away": (rpc(RPCStatusCode.UNAVAILABLE), Unavailable),
    "busy": (rpc(RPCStatusCode.RESOURCE_EXHAUSTED), Unavailable),
    "answer of another build": (ValueError("1 validation error for ChangeAccepted"), EngineRefused),
    "slow": (TimeoutError(), Unavailable),
}


@pytest.mark.parametrize("case", FINAL)
async def test_only_our_own_validator_makes_an_error_final(case: str) -> None:
    raised, expected = FINAL[case]
    with pytest.raises(IPnextError) as found:
        async with reaching("the entity of ctr"):
            raise raised
    assert type(found.value) is expected
    assert found.value.retryable is (expected not in {InvalidInput, Conflict})
