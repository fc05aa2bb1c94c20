"""A replan of 100,000 models: nothing that travels through the workflow grows with them."""

from datetime import UTC, datetime

import pytest
from sqlalchemy import insert
from temporalio.contrib.pydantic import pydantic_data_converter
from temporalio.testing import ActivityEnvironment

from activities.planning import replan as replanning
from activities.planning.move_window import MoverActivities
from activities.planning.policy import PlanningPolicy
from activities.planning.replan import FleetReplan
from activities.planning.replan_activities import ReplanActivities
from activities.planning.solver import ThreadSolver
from ipnext.model.lifecycle.replans.moves import MoverState, MoveTurn
from ipnext.model.lifecycle.replans.replan import ReplanInput, ReplanResult, ReplanState
from ipnext.store.records import PlanEntry
from ipnext.store.tables.row import METADATA

MODELS = 100_000
MOST_BYTES = 64 * 1024
NAMES = tuple(f"a-model-with-a-name-of-usual-length-{number:06}" for number in range(MODELS))
REASON = "rolled_back: GateFailed: " + "the error rate is above what is allowed; " * 10


@pytest.fixture(scope="module")
def listed(kit, migrated, tmp_path_factory):
    """A replan that moves so many models: half of them failed, a quarter waits, a quarter is held by a freeze."""
    house = kit.House(tmp_path_factory.mktemp("big"), migrated)
    house.apply_fleet()
    now = datetime.now(UTC)
    with house.store.begin() as repository:
        repository.add_replan("r", "manual")
        repository.claim_replans("plan", run_id="run")
        repository.list_moves("plan", NAMES)
        repository.update_replans("plan", state=ReplanState.MOVING)
        repository.connection().exec_driver_sql(
            "UPDATE replan_moves SET state = 'failed', message = ? WHERE position < ?", (REASON, MODELS // 2)
        )
        held = NAMES[MODELS // 2 : 3 * MODELS // 4]
        repository.connection().exec_driver_sql(
            (
                "UPDATE replan_moves SET state = 'moving', change_id = 'move-' || model WHERE position >= ? AND "
                "position < ?"
            ),
            (MODELS // 2, 3 * MODELS // 4),
        )
        for start in range(0, len(held), 1000):
            some = held[start : start + 1000]
            repository.connection().execute(insert(METADATA.tables["models"]), [model_row(name, now) for name in some])
            repository.connection().execute(
                insert(METADATA.tables["conditions"]), [condition_row(name, now) for name in some]
            )
    yield house
    house.close()


def model_row(name, now):
    numbers = {"generation": 1, "observed_generation": 1, "version": 1, "retired": False}
    return {"name": name, "manifest": "{}", "created_at": now, "updated_at": now, **numbers}


def condition_row(name, now):
    told = {"type": "Progressing", "status": "False", "reason": "Frozen", "message": "until Monday " * 20}
    return {"model": name, "last_transition_time": now, **told}


async def size_of(*values):
    """Bytes of the payloads of some values, as the workflow's client encodes them."""
    return sum(payload.ByteSize() for payload in await pydantic_data_converter.encode(values))


async def test_no_payload_of_a_replan_grows_with_the_models(listed, monkeypatch):
    monkeypatch.setattr(replanning, "_meanwhile", lambda *_: ({}, None))
    monkeypatch.setattr(replanning, "models_to_move", lambda *_: NAMES)
    entry = PlanEntry(
        id="plan", trigger="manual", outcome="adopted", message="saves 12 $/h", created_at=datetime.now(UTC)
    )
    replan = FleetReplan(listed.store, ThreadSolver(), PlanningPolicy(), say=lambda _: None)
    with listed.store.read() as repository:
        taken = [repository.replan("r")]
    computed = replan._list_moves(entry, taken, None)
    turn = MoveTurn(plan_id="plan", window=16, asking=False)
    answer = ActivityEnvironment().run(MoverActivities(listed.store, lambda _: None).move_models, turn)
    state = MoverState(progress=answer.progress)
    carried = ReplanInput(computed=computed, asked=True, mover=state)
    result = ReplanResult(plan_id="plan", adopted=True, moves=7, message=computed.message, progress=answer.progress)
    ActivityEnvironment().run(ReplanActivities(listed.store, lambda: None).finish_replan, result)

    progress = answer.progress
    assert (computed.total, progress.total) == (MODELS, MODELS)
    assert (progress.failed, progress.held, progress.waiting) == (MODELS // 2, MODELS // 4, MODELS // 4)
    assert len(progress.troubles) == 10
    for value in (computed, turn, answer, carried, result):
        assert await size_of(value) < MOST_BYTES, type(value).__name__


def test_the_line_of_a_replan_names_a_thousand_models_at_most(listed):
    with listed.store.read() as repository:
        assert repository.replan("r").models == NAMES[:1000]
