"""Plans, transitions, deployments, routes, conditions and events on both engines."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from ipnext.errors import InvalidInput, NotFound, StaleWrite
from ipnext.model.deployment import Deployment, DeploymentKey, RouteShare, RouteTable
from ipnext.model.plan import Plan, PlanDiff, Problem, SolverInfo
from ipnext.model.rollout import FleetState, GenerationShare, Transition, TransitionState, Wave
from ipnext.model.status import ConditionType, Reason
from ipnext.store.records import PlanRecord, TransitionRecord

NOW = datetime(2026, 3, 29, 1, 30, 0, 123456, tzinfo=UTC)


def plan(plan_id: str, *, message: str = "") -> PlanRecord:
    problem = Problem(regions=("north",), rtt_ms=((0.0,),), hardware=("cpu",), supply=(), models=())
    solved = Plan(
        status="optimal",
        objective=1.5,
        bound=1.5,
        gap=0.0,
        bound_covers="all",
        cost_per_hour=0.1 + 0.2,
        replicas=(),
        traffic=(),
        solver=SolverInfo(method="highs", seconds=0.25),
    )
    return PlanRecord(
        id=plan_id,
        trigger="manual",
        input_digest="ab" * 32,
        problem=problem,
        plan=solved,
        diff=PlanDiff(moves=1),
        message=message,
        created_at=NOW,
    )


def test_a_plan_comes_back_exactly(store):
    with store.begin() as repository:
        repository.save_plan(plan("p1"))
    with store.begin() as repository:
        assert repository.plan("p1") == plan("p1")
        with pytest.raises(NotFound, match="'p2'"):
            repository.plan("p2")


def test_plans_of_one_moment_are_listed_newest_first(store):
    with store.begin() as repository:
        for number in range(5):
            repository.save_plan(plan(f"p{number}"))
        assert [record.id for record in repository.plans(limit=3)] == ["p4", "p3", "p2"]


def test_one_plan_is_in_force_and_adopting_it_needs_the_one_before(store):
    with store.begin() as repository:
        assert repository.plan_in_force() is None
        repository.save_plan(plan("p1"))
        repository.save_plan(plan("p2"))
        repository.save_plan(plan("p3"))
        with pytest.raises(StaleWrite, match="plan None is in force, the write expects 'p0'"):
            repository.adopt_plan("p1", expected="p0")
        assert repository.adopt_plan("p1", expected=None).adopted
        assert repository.adopt_plan("p1", expected=None).adopted, "adopting it again changes nothing"
        with pytest.raises(StaleWrite, match="plan 'p1' is in force"):
            repository.adopt_plan("p2", expected=None)
        repository.adopt_plan("p2", expected="p1")
    with store.begin() as repository:
        assert repository.plan_in_force().id == "p2"
        assert {record.id: record.adopted for record in repository.plans()} == {"p1": True, "p2": True, "p3": False}


def test_a_plan_is_replaced_until_it_is_adopted(store):
    with store.begin() as repository:
        repository.save_plan(plan("p1"))
        assert repository.save_plan(plan("p1", message="again")).message == "again"
        repository.adopt_plan("p1", expected=None)
        kept = repository.save_plan(plan("p1", message="too late"))
    assert (kept.message, kept.adopted) == ("again", True)


def transition(transition_id: str = "t1", *, waves: int = 2) -> TransitionRecord:
    share = GenerationShare.model_validate(
        {"model": "ctr", "from": "north", "to": "north", "generation": 1, "fraction": 1}
    )
    walked = Transition.model_validate(
        {
            "from": FleetState(),
            "to": FleetState(traffic=(share,)),
            "waves": tuple(Wave(gate="canary") for _ in range(waves)),
        }
    )
    return TransitionRecord(
        id=transition_id, model="ctr", change_id="c1", generation=1, transition=walked, created_at=NOW
    )


def test_a_transition_comes_back_and_advances(applied):
    with applied.begin("ctr") as repository:
        assert repository.save_transition(transition()) == transition()
        repository.advance_transition("t1", waves_done=1, state=TransitionState.RUNNING)
        kept = repository.save_transition(transition(waves=5))
        record = repository.advance_transition("t1", message="gate passed")
        with pytest.raises(InvalidInput, match="has 2 waves, got 3"):
            repository.advance_transition("t1", waves_done=3)
    assert len(kept.transition.waves) == 2, "what has begun is not replaced"
    assert (record.waves_done, record.state, record.message) == (1, TransitionState.RUNNING, "gate passed")
    assert record.transition == transition().transition


def test_transitions_are_listed_newest_first(applied):
    with applied.begin("ctr") as repository:
        for number in range(3):
            repository.save_transition(transition(f"t{number}"))
        assert [record.id for record in repository.transitions("ctr", limit=2)] == ["t2", "t1"]
        with pytest.raises(NotFound):
            repository.transition("t9")


def deployment(region: str = "north", *, replicas: int = 1, model: str = "ctr") -> Deployment:
    key = DeploymentKey(model=model, part="dense", region=region, hardware="cpu")
    return Deployment(key=key, replicas=replicas, engine="torch", units=1, qps=100, settings={"threads": 1})


def test_deployments_are_put_replaced_listed_and_deleted(applied, make):
    with applied.begin() as repository:
        repository.put_model(make.manifest("other"), expected_version=None)
        repository.put_deployment(deployment("south"))
        repository.put_deployment(deployment("north"))
        repository.put_deployment(deployment("north", replicas=3))
        repository.put_deployment(deployment(model="other"))
        assert repository.deployments("ctr") == (deployment("north", replicas=3), deployment("south"))
        assert len(repository.deployments()) == 3
        repository.delete_deployment(deployment("south").key)
        repository.delete_deployment(deployment("south").key)
        assert repository.deployments("ctr") == (deployment("north", replicas=3),)
        with pytest.raises(NotFound):
            repository.put_deployment(deployment(model="unknown"))


def route(revision: int, *, fraction: float = 1.0, region: str = "north") -> RouteTable:
    share = RouteShare(to="north", generation=1, fraction=fraction)
    return RouteTable(model="ctr", region=region, revision=revision, shares=(share,), served=())


def test_a_later_route_replaces_an_earlier_one_only(applied):
    with applied.begin("ctr") as repository:
        assert repository.route("ctr", "north") is None
        repository.put_route(route(2))
        assert repository.put_route(route(2)) == route(2)
        assert repository.put_route(route(1)) == route(2), "equal content changes nothing"
        for stale in (1, 2):
            with pytest.raises(StaleWrite, match=f"at revision 2, the write brings {stale}"):
                repository.put_route(route(stale, fraction=0.5))
        repository.put_route(route(3, fraction=0.5))
        repository.put_route(route(1, region="east"))
        assert [table.region for table in repository.routes("ctr")] == ["east", "north"]
        repository.delete_routes("ctr")
        assert repository.routes("ctr") == ()
        assert repository.route("ctr", "north") is None


def test_a_condition_moves_its_time_only_with_its_status(applied):
    with applied.begin("ctr") as repository:
        first = repository.set_condition("ctr", ConditionType.READY, "False", Reason.PENDING)
    with applied.begin("ctr") as repository:
        same = repository.set_condition("ctr", ConditionType.READY, "False", Reason.LOAD_FAILED, "out of luck")
        assert same.last_transition_time == first.last_transition_time
        assert (same.reason, same.message) == (Reason.LOAD_FAILED, "out of luck")
    with applied.begin("ctr") as repository:
        moved = repository.set_condition("ctr", ConditionType.READY, "True", Reason.SERVING)
        repository.set_condition("ctr", ConditionType.RESOLVED, "True", Reason.SUCCEEDED)
        assert moved.last_transition_time > first.last_transition_time
        assert [condition.type for condition in repository.conditions("ctr")] == ["SnapshotsResolved", "Ready"]


def test_events_are_listed_newest_first_for_a_model_or_for_all(applied, make):
    with applied.begin() as repository:
        repository.put_model(make.manifest("other"), expected_version=None)
        repository.add_event("ctr", "Published", "generation 1", run_id="run", detail={"parts": ["dense"]})
        repository.add_event(None, "Replanned", "plan p1")
        repository.add_event("other", "Applied", "")
        repository.add_event("ctr", "Serving", "generation 1")
        assert [event.kind for event in repository.events("ctr")] == ["Serving", "Published"]
        assert [event.kind for event in repository.events(limit=3)] == ["Serving", "Applied", "Replanned"]
        assert repository.events("ctr")[1].detail == {"parts": ["dense"]}


def test_times_come_back_in_utc_to_the_microsecond(store):
    east = datetime(2026, 3, 29, 3, 30, 0, 123456, tzinfo=timezone(timedelta(hours=2)))
    with store.begin() as repository:
        repository.save_plan(plan("p1").model_copy(update={"created_at": east}))
    with store.begin() as repository:
        created_at = repository.plan("p1").created_at
    assert created_at == east
    assert created_at.tzinfo is UTC
