"""A model is not `Ready` from the moment in which a publish, a rollback or an apply is acknowledged."""

from contextlib import contextmanager

import pytest
from sqlalchemy import event

from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.lifecycle_run import LifecycleResult, RecordInput
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.model.planning.transition import Transition, TransitionState
from ipnext.store.operations.change_end import end_change, judge_again, note_waiting, write_ready
from ipnext.store.operations.refused_routes import refuse_further_users
from ipnext.store.records import TransitionRecord

ADDS_US = [{"region": "eu", "qps": 10}, {"region": "us", "qps": 1}]


async def conditions_of(world):
    status = (await world.http.get("/v1/models/ranker")).json()["status"]
    return {found["type"]: found for found in status["conditions"]}


async def served(world, *salts):
    for number, salt in enumerate(salts, start=1):
        await world.publish(salt)
        world.rooms.serve(number)
    assert (await conditions_of(world))["Ready"]["status"] == "True"


async def apply(world, demand):
    document = world.rooms.model_document()
    document["spec"]["demand"] = demand
    answer = await world.http.put("/v1/models/ranker", json=document)
    return answer.raise_for_status().json()["change"]["id"]


def end(world, change_id, state, reason):
    result = LifecycleResult(state=state, generation=2, reason=reason)
    record = RecordInput(
        model="ranker",
        change_id=change_id,
        kind=ChangeKind.PUBLISH,
        generation=2,
        result=result,
        run_id="r",
        revision=1,
    )
    with world.rooms.store.begin("ranker") as unit:
        end_change(unit, record)


def nothing(_unit):
    pass


def pause(unit):
    unit.set_condition("ranker", ConditionType.PROGRESSING, "False", Reason.PAUSED, "paused by ann")


def freeze_a_move(unit):
    move = unit.add_change("ranker", ChangeKind.MOVE, change_id="away")
    unit.update_change(move.id, state=ChangeState.RUNNING, reason=Reason.FROZEN, message="frozen until tomorrow")


async def publish(world):
    return (await world.publish("c")).raise_for_status().json()["id"]


async def roll_back(world):
    answer = await world.http.post("/v1/models/ranker/rollback", json={"generation": 1})
    return answer.raise_for_status().json()["id"]


async def add_us(world):
    return await apply(world, ADDS_US)


@pytest.mark.parametrize("request_change", [publish, roll_back, add_us])
@pytest.mark.parametrize("held_by", [nothing, pause, freeze_a_move])
async def test_an_acknowledged_change_that_has_not_begun_leaves_no_model_ready(applied, held_by, request_change):
    await served(applied, "a", "b")
    with applied.rooms.store.begin("ranker") as unit:
        held_by(unit)
    change_id = await request_change(applied)

    found = await conditions_of(applied)
    for kind in ("UpToDate", "Ready"):
        assert (found[kind]["status"], found[kind]["reason"]) == ("False", "Pending")
        assert found[kind]["message"].endswith(f" {change_id} waits; generation 2 serves")
    assert found["Serving"]["status"] == "True"
    assert (await applied.http.get("/v1/models?ready=true")).json()["items"] == []
    assert (await applied.http.get("/v1/overview")).json()["ready_count"] == 0


@pytest.mark.parametrize(
    ("state", "up_to_date"),
    [
        (ChangeState.DONE, ("True", "Succeeded")),
        (ChangeState.REFUSED, ("False", "SchemaMismatch")),
        (ChangeState.ROLLED_BACK, ("False", "SchemaMismatch")),
    ],
)
async def test_the_end_of_the_change_judges_the_model_again(applied, state, up_to_date):
    await served(applied, "a")
    change_id = await publish(applied)
    with applied.rooms.store.begin("ranker") as unit:
        unit.update_model("ranker", target_generation=2)
        if state is ChangeState.DONE:
            table = unit.route("ranker", "eu")
            shares = tuple(share.model_copy(update={"generation": 2}) for share in table.shares)
            unit.put_route(table.model_copy(update={"revision": table.revision + 1, "shares": shares}))
    end(applied, change_id, state, Reason(up_to_date[1]))
    found = (await conditions_of(applied))["UpToDate"]
    assert (found["status"], found["reason"]) == up_to_date


async def test_changes_that_were_superseded_before_they_began_leave_the_model_ready(applied):
    await served(applied, "a")
    change_id = await publish(applied)
    with applied.rooms.store.begin("ranker") as unit:
        unit.update_change(change_id, state=ChangeState.SUPERSEDED, reason=Reason.SUPERSEDED)
        judge_again(unit, "ranker")
    assert (await conditions_of(applied))["Ready"]["status"] == "True"


async def test_a_rollback_to_the_serving_generation_is_under_way_until_it_ends(applied):
    await served(applied, "a")
    with applied.rooms.store.begin("ranker") as unit:
        back = unit.add_change("ranker", ChangeKind.ROLLBACK, change_id="back", generation=1)
        unit.update_change(back.id, state=ChangeState.RUNNING)
        write_ready(unit, unit.model("ranker"))
    found = (await conditions_of(applied))["UpToDate"]
    assert (found["status"], found["message"]) == ("False", "rollback back is under way; generation 1 serves")


@pytest.mark.parametrize("kind", [ChangeKind.MOVE, ChangeKind.REPAIR, ChangeKind.RETIRE])
async def test_changes_that_bring_no_other_state_leave_the_model_ready(applied, kind):
    await served(applied, "a")
    with applied.rooms.store.begin("ranker") as unit:
        note_waiting(unit, unit.add_change("ranker", kind, change_id="other"))
    assert (await conditions_of(applied))["Ready"]["status"] == "True"


async def test_a_repeated_request_does_not_contradict_the_change_that_has_begun(applied):
    await served(applied, "a")
    await applied.publish("b", change_id="one")
    applied.rooms.serve(2)
    await applied.publish("b", change_id="one")
    assert (await conditions_of(applied))["Ready"]["status"] == "True"


async def test_the_first_publish_waits_for_its_turn(applied):
    await publish(applied)
    found = (await conditions_of(applied))["Ready"]
    assert (found["status"], found["reason"]) == ("False", "Pending")
    with applied.rooms.store.read() as unit:
        (table,) = unit.routes("ranker")
    assert (table.region, table.unmet_rules) == ("eu", ("generation 1 does not serve (Pending)",))


async def test_a_manifest_that_is_applied_while_the_first_publish_waits_does_not_deny_it(applied):
    change_id = await publish(applied)
    await apply(applied, ADDS_US)
    assert (await conditions_of(applied))["Ready"]["reason"] == "Pending"
    with applied.rooms.store.read() as unit:
        told = {table.region: table.unmet_rules for table in unit.routes("ranker")}
        assert unit.change(change_id).generation == 1
    assert told == dict.fromkeys(("eu", "us"), ("generation 1 does not serve (Pending)",))


def pending(world):
    with world.rooms.store.read() as unit:
        return {table.region: table.unmet_rules for table in unit.routes("ranker") if table.pending}


async def test_users_of_a_region_that_a_waiting_manifest_adds_are_refused_with_the_reason(applied):
    await served(applied, "a")
    await apply(applied, ADDS_US)
    assert pending(applied) == {"us": ("revision 2 of the manifest does not serve (Pending)",)}
    await apply(applied, ADDS_US[:1])
    assert pending(applied) == {}


def move_to(unit, change_id, *regions):
    """Let a change move the model by a transition for the users of these regions."""
    unit.update_change(change_id, state=ChangeState.RUNNING)
    demand = [{"region": region, "qps": 1} for region in regions]
    stated = Transition.model_validate({"from": {}, "to": {}, "demand": demand})
    now = unit.change(change_id).created_at
    unit.save_transition(
        TransitionRecord(
            id=change_id, model="ranker", change_id=change_id, generation=2, transition=stated, created_at=now
        )
    )
    unit.advance_transition(change_id, state=TransitionState.RUNNING)


@pytest.mark.parametrize(("moved", "refused"), [(("eu",), {"us"}), (("eu", "us"), set())])
async def test_a_transition_that_waits_keeps_only_its_own_regions_from_being_refused(applied, moved, refused):
    await served(applied, "a")
    change_id = await publish(applied)
    with applied.rooms.store.begin("ranker") as unit:
        move_to(unit, change_id, *moved)
    await apply(applied, ADDS_US)
    assert pending(applied).keys() == refused


async def test_the_first_transition_of_a_model_keeps_its_regions_too(applied):
    """A table of its regions that changed under it would fail its step."""
    change_id = await publish(applied)
    with applied.rooms.store.begin("ranker") as unit:
        unit.update_model("ranker", target_generation=1)
        move_to(unit, change_id, "eu")
        before = unit.route("ranker", "eu")
    await apply(applied, ADDS_US)
    await applied.publish("newer")
    assert pending(applied) == {"us": ("revision 2 of the manifest does not serve (Pending)",)}
    with applied.rooms.store.read() as unit:
        assert unit.route("ranker", "eu") == before


async def test_tables_of_regions_that_a_transition_writes_are_not_deleted(applied):
    await served(applied, "a")
    change_id = await apply(applied, ADDS_US)
    with applied.rooms.store.begin("ranker") as unit:
        move_to(unit, change_id, "eu", "us")
        refuse_further_users(unit, unit.model("ranker"), Reason.PROGRESSING)
    assert pending(applied).keys() == {"us"}


@contextmanager
def statements(store):
    sent = []

    def add(_connection, _cursor, statement, *_):
        sent.append(statement)

    event.listen(store._engine, "before_cursor_execute", add)
    yield sent
    event.remove(store._engine, "before_cursor_execute", add)


async def test_the_cost_does_not_grow_with_the_changes_of_the_model(applied):
    await served(applied, "a")
    counts = []
    for number in range(2):
        with applied.rooms.store.begin("ranker") as unit:
            for further in range(number * 30):
                unit.add_change("ranker", ChangeKind.MOVE, change_id=f"move-{further}")
            change = unit.add_change("ranker", ChangeKind.APPLY, change_id=f"apply-{number}")
            with statements(applied.rooms.store) as sent:
                note_waiting(unit, change)
        counts.append(len(sent))
    assert counts[0] == counts[1]
