"""A change that leaves less capacity than traffic: when the fleet is planned again, and where a repair leads users."""

import pytest
from temporalio.testing import ActivityEnvironment

from activities.deployment.activities import DeploymentActivities
from activities.planning.adoption import settle
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.lifecycle_run import LifecycleResult, RecordInput
from ipnext.model.lifecycle.changes.transition_run import WaveInput
from ipnext.model.lifecycle.status import Reason
from ipnext.names import move_id, shortage_replan_id
from ipnext.store.repository import Repository
from tests.activities.planning.test_parts import BASE, publish, serve

M = "ranker"
EAST, WEST = "us-east", "eu-west"
FAILED = LifecycleResult(state=ChangeState.ROLLED_BACK, reason=Reason.DEADLINE_EXCEEDED, message="never ready")


@pytest.fixture
def short(house, kit):
    """Generation 1 serves; of each replica set one replica is left, as after a disaster."""
    carried = serve(house, kit, BASE)
    with house.store.begin(M) as unit:
        for found in unit.deployments(M):
            unit.put_deployment(found.model_copy(update={"replicas": 1, "own": {1: 1} if found.own else {}}))
    return carried


@pytest.fixture
def asked(house, short):
    """Ask for a change; a move to a plan of the fleet of its own."""

    def ask(kind, number):
        if kind is not ChangeKind.MOVE:
            return house.ask(M, kind, f"change-{number}")
        short.replan(number)
        with house.store.read() as unit:
            plan_id = unit.placement(M).plan_id
        return house.ask(M, kind, f"change-{number}", plan_id=plan_id)

    return ask


@pytest.fixture
def end(house):
    def record(change, result=FAILED):
        result = result.model_copy(update={"generation": 1})
        ended = RecordInput(
            model=M, change_id=change.id, kind=change.kind, generation=1, result=result, run_id="", revision=1
        )
        ActivityEnvironment().run(DeploymentActivities(house.store, house.infrastructure).finish_change, ended)

    return record


@pytest.fixture
def pauses(monkeypatch):
    """Replan -> seconds that it waits."""
    found, add = {}, Repository.add_shortage_replan

    def record(repository, model, sequence, *, delay_seconds=0.0):
        found[shortage_replan_id(model, sequence)] = delay_seconds
        return add(repository, model, sequence, delay_seconds=delay_seconds)

    monkeypatch.setattr(Repository, "add_shortage_replan", record)
    return found


def of(change):
    return shortage_replan_id(M, change.sequence)


@pytest.mark.parametrize(("kind", "pause"), [(ChangeKind.APPLY, 0), (ChangeKind.MOVE, 15)])
def test_a_change_that_fails_and_leaves_the_model_short_requests_a_plan(house, asked, end, pauses, kind, pause):
    change = asked(kind, 1)

    end(change)

    assert pauses == {of(change): pause}
    with house.store.read() as unit:
        assert unit.replan(of(change)).trigger == "shortage"


@pytest.mark.parametrize("serves", [True, False])
def test_a_change_that_fails_and_leaves_users_whom_its_plan_served_requests_a_plan(house, kit, end, pauses, serves):
    """Users of both regions are refused, as a drain left them: replicas run, and no other event requests a replan."""
    serve(house, kit, BASE)
    with house.store.begin(M) as unit:
        for table in unit.routes(M) if not serves else ():
            unit.put_route(table.model_copy(update={"shares": (), "revision": table.revision + 1}))
    change = house.ask(M, ChangeKind.APPLY, "change-1")

    end(change)

    assert pauses == ({} if serves else {of(change): 0})


def test_a_retirement_requests_no_plan_for_the_users_that_it_refuses(house, kit, end, pauses):
    serve(house, kit, BASE)
    with house.store.begin(M) as unit:
        for table in unit.routes(M):
            unit.put_route(table.model_copy(update={"shares": (), "revision": table.revision + 1}))

    end(house.ask(M, ChangeKind.RETIRE, "change-1"), LifecycleResult(state=ChangeState.DONE))

    assert pauses == {}


@pytest.mark.parametrize(("demand", "requested"), [((EAST, WEST), True), ((EAST,), False)])
def test_users_whom_only_the_failed_manifest_names_request_no_plan(house, kit, demand, requested):
    """The manifest in force names the regions in `demand`; the plan of the failed change serves both."""
    serve(house, kit, BASE)
    with house.store.begin(M) as unit:
        [table] = [found for found in unit.routes(M) if found.region == WEST]
        unit.put_route(table.model_copy(update={"shares": (), "revision": table.revision + 1}))
        wishes = unit.placement(M).wishes
        fewer = wishes.model_copy(update={"demand": tuple(d for d in wishes.demand if d.region in demand)})

        assert settle(unit, M, change_id="change-1", wishes=fewer) is requested


@pytest.mark.parametrize("is_recorded", [True, False])
def test_a_plan_of_the_fleet_survives_a_failed_change_if_its_move_is_recorded(house, short, end, pauses, is_recorded):
    """The change began before the plan was adopted and fails after it: the move serves users whom it left refused."""
    change = house.ask(M, ChangeKind.APPLY, "change-1")
    short.replan(1)
    with house.store.read() as unit:
        plan_id = unit.placement(M).plan_id
    if is_recorded:
        house.ask(M, ChangeKind.MOVE, move_id(plan_id, M), plan_id=plan_id)

    end(change)

    with house.store.read() as unit:
        assert (unit.placement(M).plan_id == plan_id) is is_recorded
    assert list(pauses) == ([] if is_recorded else [of(change)])


def test_a_plan_of_the_fleet_by_other_wishes_than_those_before_the_change_does_not_stay(house, short):
    """The change brought a manifest that the plan goes by; it failed, and the former manifest is in force."""
    short.replan(1)
    with house.store.begin() as unit:
        placed = unit.placement(M)
        unit.add_change(M, ChangeKind.MOVE, change_id=move_id(placed.plan_id, M), plan_id=placed.plan_id)
        demand = tuple(item.model_copy(update={"qps": item.qps / 2}) for item in placed.wishes.demand)

        settle(unit, M, change_id="change-1", wishes=placed.wishes.model_copy(update={"demand": demand}))

        assert unit.placement(M).plan_id != placed.plan_id


def test_the_plan_of_a_move_that_fails_does_not_stay(house, short, end):
    short.replan(1)
    with house.store.read() as unit:
        plan_id = unit.placement(M).plan_id

    end(house.ask(M, ChangeKind.MOVE, move_id(plan_id, M), plan_id=plan_id))

    with house.store.read() as unit:
        assert unit.placement(M).plan_id != plan_id


def test_the_replan_waits_longer_after_each_move_that_failed_in_a_row(asked, end, pauses):
    for number in range(1, 9):
        end(asked(ChangeKind.MOVE, number))

    assert list(pauses.values()) == [15, 30, 60, 120, 240, 480, 600, 600]


@pytest.mark.parametrize(
    ("ended", "pause"),
    [
        ({"state": ChangeState.DONE, "reason": Reason.SUCCEEDED}, 15),
        ({"state": ChangeState.SUPERSEDED, "reason": Reason.SUPERSEDED}, 30),
        ({"state": ChangeState.REFUSED, "reason": Reason.TRANSITION_REFUSED}, 60),
    ],
)
def test_only_moves_that_were_tried_count_since_the_last_one_that_succeeded(asked, end, pauses, ended, pause):
    end(asked(ChangeKind.MOVE, 1))
    end(asked(ChangeKind.MOVE, 2), FAILED.model_copy(update=ended))
    last = asked(ChangeKind.MOVE, 3)

    end(last)

    assert pauses[of(last)] == pause


@pytest.mark.parametrize("by_request", [{"reason": Reason.ABORTED}, {"stopped_by": "change-2"}])
def test_a_move_that_was_stopped_on_request_requests_none(asked, end, pauses, by_request):
    move = asked(ChangeKind.MOVE, 1)

    end(move, FAILED.model_copy(update=by_request))

    assert pauses == {}


@pytest.mark.parametrize(("seconds", "due"), [(0, [shortage_replan_id(M, 2)]), (3600, [])])
def test_a_replan_that_waits_is_not_due(house, seconds, due):
    with house.store.begin() as unit:
        unit.add_shortage_replan(M, 2, delay_seconds=seconds)

        assert [replan.id for replan in unit.due_replans()] == due


def test_users_whom_a_revert_could_not_take_back_are_planned_where_a_repair_leads_them(house, kit):
    carried = serve(house, kit, BASE)
    with house.store.read() as unit:
        before = unit.placement(M).traffic
    change = publish(house, kit, 2, BASE)
    carried.placed(change, 2)
    carried.planned(change, 2)
    assert not carried.walk(change, 2, [0])
    house.infrastructure.cut(WEST)
    wave = {"transition_id": change.id, "model": M, "generation": 2, "index": 0, "deadline_seconds": 20, "back": True}
    back = WaveInput(**wave, reason=Reason.GATE_FAILED, message="too many errors")
    for name in ("ensure_capacity", "shift_traffic", "release_capacity"):
        carried.step(name, back)
    move_users_apart(house)

    carried.end(change, 2, ChangeState.ROLLED_BACK, Reason.GATE_FAILED)

    with house.store.read() as unit:
        assert unit.placement(M).traffic == before
        assert list(unit.open_kinds(M)) == [ChangeKind.REPAIR]


def move_users_apart(house):
    """Send a tenth of the west's users to the abandoned generation in the east, as a wave of another plan would."""
    with house.store.begin(M) as unit:
        [table] = [found for found in unit.routes(M) if found.region == WEST]
        assert {share.generation for share in table.shares} == {1, 2}
        moved = [s.model_copy(update={"to": EAST}) if s.generation == 2 else s for s in table.shares]
        unit.put_route(table.model_copy(update={"shares": tuple(moved), "revision": table.revision + 1}))
