"""Plans, transitions, deployments, routes, conditions and events on both engines."""

from datetime import UTC, datetime, timedelta, timezone

import pytest

from ipnext.errors import InvalidInput, NotFound, StaleWrite
from ipnext.model.deployment.deployment import Deployment, DeploymentKey
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.model.lifecycle.status import ConditionType, Reason
from ipnext.model.planning.plan import (
    ModelProblem,
    PartOption,
    PartProblem,
    Plan,
    PlanDiff,
    Problem,
    RegionDemand,
    RegionSupply,
    ReplicaCount,
    SolverInfo,
    TrafficShare,
    Unmet,
)
from ipnext.model.planning.transition import FleetState, GenerationShare, Transition, TransitionState, Wave
from ipnext.store.planning.placements import PreparedPlan
from ipnext.store.records import PlanEntry, PlanRecord, SolveUse, TransitionRecord

NOW = datetime(2026, 3, 29, 1, 30, 0, 123456, tzinfo=UTC)


def wishes(model: str, *, owner: str = "search", priority: float = 1.0) -> ModelProblem:
    part = PartProblem(part="dense", options=(PartOption(hardware="cpu", units=2, qps=100),))
    return ModelProblem(
        model=model,
        owner=owner,
        priority=priority,
        latency_tolerance_ms=100,
        demand=(RegionDemand(region="north", qps=250),),
        parts=(part,),
    )


def plan(
    plan_id: str,
    *,
    counts: dict[str, int] | None = None,
    scope: str | None = None,
    unmet: dict[str, float] | None = None,
    **more: object,
) -> PreparedPlan:
    """A plan that gives each model of `counts` so many replicas of two units in the north, at 1.5 $/h a unit."""
    counts = {"ctr": 3} if counts is None else counts
    problem = Problem(
        regions=("north", "south"),
        rtt_ms=((0.0, 9.0), (9.0, 0.0)),
        hardware=("cpu",),
        supply=(RegionSupply(region="north", hardware="cpu", units=100, unit_cost=1.5),),
        models=tuple(wishes(model) for model in counts),
    )
    solved = Plan(
        status="optimal",
        objective=1.5,
        bound=1.5,
        gap=0.0,
        bound_covers="all",
        cost_per_hour=sum(counts.values()) * 3.0,
        replicas=tuple(
            ReplicaCount(model=model, part="dense", region="north", hardware="cpu", count=count)
            for model, count in counts.items()
        ),
        traffic=tuple(TrafficShare(model=model, origin="north", to="north", fraction=1) for model in counts),
        unmet=tuple(
            Unmet(model=model, region="north", qps=qps, rules=("supply",)) for model, qps in (unmet or {}).items()
        ),
        solver=SolverInfo(method="highs", seconds=0.0),
    )
    record = PlanRecord(
        id=plan_id,
        trigger="manual",
        scope=scope,
        input_digest="ab" * 32,
        problem=problem,
        plan=solved,
        diff=PlanDiff(moves=1),
        use=SolveUse(wall_seconds=0.25, cpu_seconds=0.5, peak_memory_bytes=2**33),
        created_at=NOW,
        **more,
    )
    return PreparedPlan.of(record)


def test_a_plan_comes_back_exactly_with_what_it_took(store):
    with store.begin() as repository:
        entry = repository.save_plan(plan("p1"))
    with store.begin() as repository:
        assert repository.plan("p1") == plan("p1").record
        assert repository.plan_entry("p1") == entry
        assert (entry.use.wall_seconds, entry.use.peak_memory_bytes) == (0.25, 2**33)
        assert (entry.method, entry.bound, entry.bound_covers, entry.cost_per_hour) == ("highs", 1.5, "all", 9.0)
        assert repository.plan_diff("p1") == PlanDiff(moves=1)
        assert Problem.model_validate_json(repository.plan_documents("p1").problem) == plan("p1").record.problem
        for ask in (repository.plan, repository.plan_entry, repository.plan_diff, repository.plan_documents):
            with pytest.raises(NotFound, match="'p2'"):
                ask("p2")


def test_documents_lie_packed(store):
    with store.begin() as repository:
        repository.save_plan(plan("p1", counts={f"m-{n:04}": 1 for n in range(200)}))
        size = repository.connection().exec_driver_sql("SELECT length(problem) FROM plans").scalar()
        documents = repository.plan_documents("p1")
    assert size < len(documents.problem) / 10


def test_plans_of_one_moment_are_listed_newest_first(store):
    with store.begin() as repository:
        for number in range(5):
            repository.save_plan(plan(f"p{number}", scope="ctr" if number == 3 else None))
        assert [entry.id for entry in repository.plans(limit=3)] == ["p4", "p3", "p2"]
        assert [entry.id for entry in repository.plans(limit=3, fleet_only=True)] == ["p4", "p2", "p1"]
        assert repository.fleet_plans(["p3", "p4", "p9"]) == {"p4"}


def test_one_plan_is_in_force_and_adopting_it_needs_the_one_before(store):
    with store.begin() as repository:
        assert repository.plan_in_force() is None
        repository.save_plan(plan("p1"))
        repository.save_plan(plan("p3"))
        with pytest.raises(StaleWrite, match="plan None is in force, the write expects 'p0'"):
            repository.adopt_plan(plan("p1"), expected="p0")
        assert repository.adopt_plan(plan("p1"), expected=None).is_adopted
        assert repository.adopt_plan(plan("p1"), expected=None).is_adopted, "adopting it again changes nothing"
        with pytest.raises(StaleWrite, match="plan 'p1' is in force"):
            repository.adopt_plan(plan("p2"), expected=None)
        repository.adopt_plan(plan("p2"), expected="p1")
    with store.begin() as repository:
        assert (repository.plan_in_force().id, repository.plan_in_force().based_on) == ("p2", "p1")
        assert {entry.id: entry.is_adopted for entry in repository.plans()} == {"p1": True, "p2": True, "p3": False}


def test_a_plan_is_replaced_until_it_is_adopted(store):
    with store.begin() as repository:
        repository.save_plan(plan("p1"))
        assert repository.save_plan(plan("p1", message="again")).message == "again"
        repository.adopt_plan(plan("p1", message="adopted"), expected=None)
        kept = repository.save_plan(plan("p1", message="too late"))
    assert (kept.message, kept.is_adopted) == ("adopted", True)


def test_a_replan_that_found_no_plan_leaves_a_line(store):
    failed = PlanEntry(
        id="p1",
        trigger="schedule",
        outcome="failed",
        reason=Reason.PLANNER_FAILED,
        message="killed",
        has_documents=False,
        created_at=NOW,
    )
    with store.begin() as repository:
        assert repository.save_failure(failed) == failed
        with pytest.raises(NotFound, match="only its line is kept"):
            repository.plan("p1")
        repository.save_plan(plan("p2"))
        assert repository.save_failure(failed.model_copy(update={"id": "p2"})).outcome == "kept", "a plan stays"
        assert repository.newest_fleet_plan(outcomes=("failed",)) == failed


def test_old_plans_of_the_fleet_go_and_adopted_ones_keep_their_line(store):
    with store.begin() as repository:
        repository.adopt_plan(plan("a1"), expected=None)
        repository.adopt_plan(plan("a2", counts={"ctr": 4}), expected="a1")
        for number in range(4):
            repository.save_plan(plan(f"k{number}"))
        repository.adopt_plan(plan("one", counts={"ctr": 5}, scope="ctr"), expected="a2")
        repository.prune_plans(keep=2)
    with store.begin() as repository:
        held = {entry.id: entry.has_documents for entry in repository.plans()}
        assert held == {"one": True, "k3": True, "k2": True, "a2": True, "a1": False}, "a2 was adopted last"
        with pytest.raises(NotFound, match="too old"):
            repository.plan("a1")
        assert repository.plan_in_force_id() == "one"
        assert repository.prune_plans(keep=2) == 0


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


def settled(repository):
    return repository.settled_generations(["ctr", "unknown"])["ctr"]


def test_users_were_sent_to_what_a_transition_led_to_before_its_change_is_done(applied, make):
    with applied.begin() as repository:
        change = repository.publish("ctr", {"dense": make.source("d"), "sparse": make.source("s")}, change_id="c1")
        repository.save_transition(transition())
        assert settled(repository) is None
        repository.advance_transition("t1", state=TransitionState.DONE)
        assert settled(repository) == repository.transition("t1").generation
        repository.update_change(change.id, state=ChangeState.DONE)
        assert settled(repository) is None
        repository.update_model("ctr", serving_generation=1)
        assert settled(repository) == 1


def test_a_transition_is_under_way_until_it_or_its_change_has_ended(applied, make):
    with applied.begin() as repository:
        change = repository.publish("ctr", {"dense": make.source("d"), "sparse": make.source("s")}, change_id="c1")
        assert repository.moving_models(but="other") == ()
        repository.save_transition(transition())
        assert [moving.model for moving in repository.moving_models(but="other")] == ["ctr"]
        assert repository.moving_models(but="ctr") == ()
        repository.update_change(change.id, state=ChangeState.DONE)
        assert repository.moving_models(but="other") == ()
        assert repository.ended_changes(["c1", "c2"]) == {"c1"}


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
        repository.set_condition("ctr", ConditionType.UP_TO_DATE, "False", Reason.PENDING)
        first, _ready = repository.conditions("ctr")
    with applied.begin("ctr") as repository:
        repository.set_condition("ctr", ConditionType.UP_TO_DATE, "False", Reason.LOAD_FAILED, "out of luck")
        same, _ready = repository.conditions("ctr")
        assert same.last_transition_time == first.last_transition_time
        assert (same.reason, same.message) == (Reason.LOAD_FAILED, "out of luck")
    with applied.begin("ctr") as repository:
        repository.set_condition("ctr", ConditionType.UP_TO_DATE, "True", Reason.SERVING)
        repository.set_condition("ctr", ConditionType.RESOLVED, "True", Reason.SUCCEEDED)
        moved = repository.conditions("ctr")[-2]
        assert moved.last_transition_time > first.last_transition_time
        assert [condition.type for condition in repository.conditions("ctr")] == [
            "SnapshotsResolved", "UpToDate", "Ready",
        ]  # fmt: skip


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
        repository.save_plan(plan("p1").with_record(created_at=east))
    with store.begin() as repository:
        created_at = repository.plan("p1").created_at
    assert created_at == east
    assert created_at.tzinfo is UTC
