"""When a model drifted from the generation that serves, and when a repair of it is recorded."""

from datetime import timedelta
from types import SimpleNamespace

import pytest
from temporalio.testing import ActivityEnvironment

from activities.deployment.hold_activities import HoldingActivities
from activities.planning import drift
from activities.planning.drift import FIRST_PAUSE, WAITS_AFTER, drift_of, record_repair, withdraw_unserved
from activities.regions import reconciliation, returned_regions
from activities.regions.activities import DrainActivities
from activities.regions.reconciliation import ReconciliationActivities
from activities.regions.recovery import RegionRecovery
from ipnext.errors import Unavailable
from ipnext.model.deployment.deployment import AssignedSnapshot, Deployment, DeploymentKey
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.controls import ControlAsked, HoldNote
from ipnext.model.lifecycle.changes.lifecycle_run import Done
from ipnext.model.lifecycle.regions.drain import DrainInput, DrainState
from ipnext.model.lifecycle.status import Reason
from ipnext.model.planning.plan import ReplicaCount
from ipnext.model.planning.transition import FleetState, Transition, TransitionState, Wave
from ipnext.model.registry.registry import GenerationState
from ipnext.store.records import TransitionRecord

EAST = DeploymentKey(model="m", part="dense", region="us-east", hardware="cpu")


def end(unit, change, state=ChangeState.DONE):
    unit.update_change(change.id, state=state, reason=Reason.SUCCEEDED, message="")


def route(unit, *generations, revision=1):
    shares = tuple(RouteShare(to="us-east", generation=n, fraction=1 / len(generations)) for n in generations)
    unit.put_route(RouteTable(model="m", region="us-east", revision=revision, shares=shares, served=()))


def hold(unit, *generations, own=None, part="dense"):
    held = AssignedSnapshot(
        part=None, snapshot=1, digest="d" * 64, uri="file:///d", generations=generations, signers=None
    )
    unit.put_deployment(
        Deployment(
            key=EAST.model_copy(update={"part": part}),
            replicas=2,
            engine="torch",
            units=1,
            qps=100,
            memory_bytes=1,
            holds=(held,),
            own=own or {},
        )
    )


@pytest.fixture
def served(house):
    """Generations 1 and 2 served one after the other; 3 never did. All changes have ended."""
    house.apply("m")
    changes = [house.publish("m", number) for number in (1, 2, 3)]
    with house.store.begin("m") as unit:
        for number, change in enumerate(changes, start=1):
            end(unit, change, ChangeState.DONE if number < 3 else ChangeState.ROLLED_BACK)
            if number < 3:
                unit.set_generation_state("m", number, GenerationState.SERVING)
        unit.update_model("m", serving_generation=2)
        route(unit, 2)
        hold(unit, 1, 2)
    return house


def test_what_serves_and_what_stays_warm_is_no_drift(served):
    with served.store.read() as unit:
        assert drift_of(unit, "m") == ""
        assert unit.models_astray() == ()


def test_users_sent_to_another_generation_are_drift(served):
    with served.store.begin("m") as unit:
        route(unit, 1, 2, revision=2)
    with served.store.read() as unit:
        assert drift_of(unit, "m") == "users of us-east are sent to generation 1; generation 2 serves"
        assert unit.models_astray() == ("m",)


@pytest.mark.parametrize(
    ("generations", "own", "told"),
    [((2, 3), None, "3"), ((1, 2), {1: 1, 2: 1}, "1")],
    ids=["loaded though it never served", "in processes of its own"],
)
def test_replicas_left_with_another_generation_are_drift(served, generations, own, told):
    with served.store.begin("m") as unit:
        hold(unit, *generations, own=own)
        assert drift_of(unit, "m") == f"dense in us-east holds generation {told}; generation 2 serves"


def test_replicas_of_a_part_that_the_serving_generation_lacks_are_drift(served):
    with served.store.begin("m") as unit:
        hold(unit, 1, part="extra")
        assert drift_of(unit, "m") == "extra in us-east holds generation 1; generation 2 serves"


def test_a_model_that_serves_nothing_or_is_retired_has_no_drift(served):
    with served.store.begin("m") as unit:
        route(unit, 1, revision=2)
        unit.update_model("m", serving_generation=None)
        assert drift_of(unit, "m") == ""
        unit.update_model("m", serving_generation=2, retired=True)
        assert drift_of(unit, "m") == ""


def test_a_repair_is_recorded_once_and_not_beside_an_open_change(served):
    with served.store.begin("m") as unit:
        route(unit, 1, revision=2)
        repair = record_repair(unit, "m")
        assert (repair.kind, repair.state) == (ChangeKind.REPAIR, ChangeState.RECORDED)
        assert record_repair(unit, "m") is None
        assert next(event.kind for event in unit.events("m")) == "RepairRecorded"


@pytest.mark.parametrize("kind", [ChangeKind.APPLY, ChangeKind.MOVE])
def test_a_repair_is_recorded_beside_a_change_that_waits_for_long(served, kind):
    """For supply, say: users would stay on a generation that failed for as long."""
    with served.store.begin("m") as unit:
        route(unit, 1, revision=2)
        waiting = unit.add_change("m", kind, change_id="waits")
        unit.update_change(waiting.id, state=ChangeState.RUNNING)
        later = waiting.created_at + WAITS_AFTER
        assert record_repair(unit, "m", now=later - timedelta(seconds=1)) is None
        assert record_repair(unit, "m", now=later) is not None


def test_no_repair_is_recorded_beside_a_rollback_however_long_it_waits(served):
    with served.store.begin("m") as unit:
        route(unit, 1, revision=2)
        back = unit.add_change("m", ChangeKind.ROLLBACK, change_id="back", generation=1)
        unit.update_change(back.id, state=ChangeState.RUNNING)
        assert record_repair(unit, "m", now=back.created_at + 2 * WAITS_AFTER) is None


def test_repairs_that_fail_in_a_row_wait_twice_as_long_each(served):
    with served.store.begin("m") as unit:
        route(unit, 1, revision=2)
        repair, pause = record_repair(unit, "m"), FIRST_PAUSE
        for _ in range(3):
            end(unit, repair, ChangeState.ROLLED_BACK)
            finished = unit.change(repair.id).finished_at
            assert record_repair(unit, "m", now=finished + pause - timedelta(seconds=1)) is None
            repair = record_repair(unit, "m", now=finished + pause)
            pause *= 2
        assert repair is not None


def test_a_failed_repair_is_tried_again_though_only_replicas_drifted(served):
    """No route table names such a model: the query by route tables does not find it."""
    with served.store.begin("m") as unit:
        hold(unit, 2, 3)
        repair = record_repair(unit, "m")
        assert unit.models_unrepaired() == ()
        end(unit, repair, ChangeState.REFUSED)
        assert (unit.models_astray(), unit.models_unrepaired()) == ((), ("m",))
        again = record_repair(unit, "m", now=unit.change(repair.id).finished_at + FIRST_PAUSE)
        assert unit.models_unrepaired() == ()
        end(unit, again)
        assert unit.models_unrepaired() == ()


def test_the_reconciler_records_it(served, monkeypatch):
    monkeypatch.setattr(drift, "FIRST_PAUSE", timedelta(0))
    with served.store.begin("m") as unit:
        hold(unit, 2, 3)
        end(unit, record_repair(unit, "m"), ChangeState.REFUSED)
    activities = ReconciliationActivities(served.store, served.infrastructure)

    assert ActivityEnvironment().run(activities.record_repairs, Done()).models == ("m",)


def test_without_drift_nothing_is_recorded(served):
    with served.store.begin("m") as unit:
        assert record_repair(unit, "m") is None


def test_nothing_stays_of_a_model_whose_first_publish_was_not_reverted_everywhere(served):
    with served.store.begin("m") as unit:
        unit.update_model("m", serving_generation=None)
        assert unit.models_unserved() == ("m",)
    with served.store.begin() as unit:
        assert withdraw_unserved(unit, "m")
        assert (unit.deployments("m"), unit.models_unserved()) == ((), ())
        assert {table.region: table.refuses for table in unit.routes("m")} == {"us-east": True, "eu-west": True}
        assert next(event.kind for event in unit.events("m")) == "Withdrawn"


def test_a_model_with_an_open_change_or_a_serving_generation_is_not_withdrawn(served):
    with served.store.begin() as unit:
        assert not withdraw_unserved(unit, "m")
    served.publish("m", 4)
    with served.store.begin() as unit:
        unit.update_model("m", serving_generation=None)
        assert not withdraw_unserved(unit, "m")
        assert unit.routes("m")


def lose_europe(unit):
    """Lose a region whose users are sent to a generation that does not serve."""
    shares = (RouteShare(to="us-east", generation=1, fraction=1.0),)
    unit.put_route(RouteTable(model="m", region="eu-west", revision=1, shares=shares, served=()))
    unit.update_drain(unit.add_drain("eu-west", disaster=True).id, state=DrainState.DRAINED)


def test_drift_in_a_lost_region_does_not_count(served):
    with served.store.begin() as unit:
        lose_europe(unit)
        assert drift_of(unit, "m") == ""
        assert (unit.models_astray(), unit.models_astray(but={"eu-west"})) == (("m",), ())


def test_drift_in_the_other_regions_is_repaired_while_one_is_lost(served):
    with served.store.begin() as unit:
        lose_europe(unit)
        route(unit, 1, revision=2)

    activities = ReconciliationActivities(served.store, served.infrastructure)
    recorded = ActivityEnvironment().run(activities.record_repairs, Done())

    assert recorded.models == ("m",)
    with served.store.read() as unit:
        assert drift_of(unit, "m") == "users of us-east are sent to generation 1; generation 2 serves"


@pytest.mark.parametrize("region", ["us-east", "eu-west"])
def test_no_repair_is_recorded_by_a_plan_that_places_the_model_in_a_lost_region(served, monkeypatch, region):
    row = ReplicaCount(model="m", part="dense", region=region, hardware="cpu", count=1)
    with served.store.begin() as unit:
        lose_europe(unit)
        hold(unit, 2, 3)
        monkeypatch.setattr(type(unit), "placement", lambda *_: SimpleNamespace(replicas=(row,)))
        assert (record_repair(unit, "m") is None) is (region == "eu-west")


def test_what_drifted_while_a_region_was_lost_is_repaired_once_it_is_back(served):
    with served.store.begin() as unit:
        drain = unit.add_drain("us-east", disaster=True)
        unit.update_drain(drain.id, state=DrainState.DRAINED)
        hold(unit, 2, 3)
        assert record_repair(unit, "m") is None
        unit.update_drain(drain.id, state=DrainState.RETURNING)

    activities = DrainActivities(served.store, served.infrastructure, lambda: None, lambda *_: None)
    ActivityEnvironment().run(activities.return_region, DrainInput(region="us-east"))

    with served.store.read() as unit:
        assert unit.drain("us-east").state is DrainState.RETURNED
        assert [change.kind for change in unit.changes("m", limit=1)] == [ChangeKind.REPAIR]


@pytest.fixture
def returned(served):
    """A region is back, and the worker that restored it ended before it recorded repairs.

    No table names what drifted.
    """
    with served.store.begin() as unit:
        drain = unit.add_drain("us-east", disaster=True)
        hold(unit, 2, 3)
        unit.update_drain(drain.id, state=DrainState.RETURNED)
        assert (unit.models_astray(), unit.models_unrepaired()) == ((), ())
    return served


def test_the_reconciler_repairs_what_drifted_while_a_region_was_lost(returned):
    activities = ReconciliationActivities(returned.store, returned.infrastructure)

    assert ActivityEnvironment().run(activities.record_repairs, Done()).models == ("m",)


def test_the_models_of_a_region_that_is_back_are_checked_once(returned, monkeypatch):
    checked = []
    monkeypatch.setattr(returned_regions, "drift_of", lambda _, model: checked.append(model))
    activities = ReconciliationActivities(returned.store, returned.infrastructure)

    for _ in range(2):
        ActivityEnvironment().run(activities.record_repairs, Done())

    assert checked == ["m"]


def test_a_model_whose_repair_could_not_be_recorded_is_found_in_the_next_pass(returned, monkeypatch):
    activities = ReconciliationActivities(returned.store, returned.infrastructure)

    def away(*_):
        raise Unavailable("the store is away")

    with monkeypatch.context() as patch:
        patch.setattr(reconciliation, "record_repair", away)
        failed = ActivityEnvironment().run(activities.record_repairs, Done())
    assert (failed.repairs, set(failed.failed)) == (0, {"m"})

    assert ActivityEnvironment().run(activities.record_repairs, Done()).models == ("m",)


def test_repairs_are_recorded_before_a_region_catches_up(served, monkeypatch):
    """To catch up takes long, and its worker may end meanwhile."""
    with served.store.begin() as unit:
        drain = unit.add_drain("us-east", disaster=True)
        hold(unit, 2, 3)
        unit.update_drain(drain.id, state=DrainState.RETURNING)

    def ends(_self):
        msg = "the worker ends"
        raise RuntimeError(msg)

    monkeypatch.setattr(RegionRecovery, "catch_up", ends)
    activities = DrainActivities(served.store, served.infrastructure, lambda: None, lambda *_: None)
    with pytest.raises(RuntimeError):
        ActivityEnvironment().run(activities.return_region, DrainInput(region="us-east"))

    with served.store.read() as unit:
        assert [change.kind for change in unit.changes("m", limit=1)] == [ChangeKind.REPAIR]


def test_a_repair_is_recorded_while_a_publish_waits_and_not_while_it_moves_the_model(served):
    change = served.publish("m", 4)
    with served.store.begin("m") as unit:
        unit.update_change(change.id, state=ChangeState.RUNNING, reason=Reason.FROZEN)
        route(unit, 1, revision=2)
        assert unit.models_astray() == ("m",)
        assert unit.is_settled("m")
        plan_waves(unit, change, TransitionState.RUNNING)
        assert (unit.models_astray(), unit.is_settled("m"), record_repair(unit, "m")) == ((), False, None)
        unit.advance_transition(change.id, state=TransitionState.DONE)
        assert record_repair(unit, "m") is None, "its end is not recorded yet"
        unit.close_transition(change.id, done=False)
    with served.store.begin("m") as unit:
        end(unit, change, ChangeState.ROLLED_BACK)
        assert record_repair(unit, "m") is not None


def test_between_two_steps_of_a_transition_the_store_counts_and_no_repair_is_recorded(served):
    change = served.publish("m", 4)
    with served.store.begin("m") as unit:
        unit.update_change(change.id, state=ChangeState.RUNNING)
        route(unit, 1, 2, revision=2)
        plan_waves(unit, change, TransitionState.PLANNED)
        assert unit.is_settled("m"), "it has not begun"
        unit.advance_transition(change.id, state=TransitionState.RUNNING)
        assert not unit.is_settled("m")
        unit.advance_transition(change.id, rests=True)
        assert (unit.is_settled("m"), "m" in unit.settled_models()) == (True, True)
        assert record_repair(unit, "m") is None


def test_no_repair_is_recorded_before_a_publish_that_waits_for_nothing(served):
    """It mends the model itself, and a repair could hold it up for as long as a region is away."""
    change = served.publish("m", 4)
    with served.store.begin("m") as unit:
        route(unit, 1, revision=2)
        assert record_repair(unit, "m") is None
        unit.update_change(change.id, state=ChangeState.RUNNING)
        assert record_repair(unit, "m") is None
    paused = HoldNote(model="m", held=True, reason=Reason.PAUSED, pause=ControlAsked(by="anna"))
    ActivityEnvironment().run(HoldingActivities(served.store).note_hold, paused)
    with served.store.read() as unit:
        assert [found.kind for found in unit.changes("m", limit=1)] == [ChangeKind.REPAIR]


@pytest.mark.parametrize("kind", [ChangeKind.ROLLBACK, ChangeKind.RETIRE])
def test_no_repair_is_recorded_before_a_change_that_waits_for_nothing(served, kind):
    with served.store.begin("m") as unit:
        route(unit, 1, revision=2)
        more = {"generation": 1} if kind is ChangeKind.ROLLBACK else {}
        change = unit.add_change("m", kind, change_id="next", **more)
        assert record_repair(unit, "m") is None
        unit.update_change(change.id, state=ChangeState.RUNNING, reason=Reason.FROZEN)
        assert (record_repair(unit, "m") is not None) is (kind is ChangeKind.RETIRE), "a frozen retirement waits"


def plan_waves(unit, change, state):
    nothing = FleetState(replicas=(), traffic=())
    unit.save_transition(
        TransitionRecord(
            id=change.id,
            model="m",
            change_id=change.id,
            generation=4,
            transition=Transition.model_validate({"from": nothing, "to": nothing, "waves": (Wave(gate="final"),)}),
            state=state,
            created_at=change.created_at,
        )
    )
