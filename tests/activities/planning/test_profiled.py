"""Plans, deployments and messages take what was measured, in the model's unit."""

from datetime import UTC, datetime

import pytest

from activities.planning.adoption import replaces
from activities.planning.policy import OBJECTIVE, REPLAN_LIMITS, PlanningPolicy
from activities.planning.problem import model_as_served, model_problem, residual_problem
from activities.planning.replan import FleetReplan, fleet_snapshot
from activities.planning.solver import ThreadSolver
from activities.regions.drain_check import refusal_of
from activities.state.desired import read_facts
from ipnext.errors import InvalidInput
from ipnext.model.manifest.parser import parse_manifest
from ipnext.model.planning.plan import Plan, SolverInfo, Unmet
from ipnext.model.registry.profile import Conditions, LoadStep, Profile
from ipnext.model.registry.registry import ArtifactFile, Signature, SnapshotManifest, SnapshotSource
from planner.solve import solve


def manifest(**option):
    part = {"name": "llm", "engine": "vllm", "hardware": [{"kind": "cpu", "units": 1, "profile": True, **option}]}
    header = {"apiVersion": "ipnext/v1", "kind": "Model", "metadata": {"name": "chat", "owner": "o"}}
    demand = [{"region": "us-east", "tokensPerSecond": 1000}]
    return parse_manifest(header | {"spec": {"task": "generation", "parts": [part], "demand": demand}})


def profile(tokens):
    step = {"concurrency": 1, "requests": 9, "seconds": 1, "ttft_p50_ms": 1, "ttft_p99_ms": 1}
    steps = (LoadStep(**step, tokens_per_second=tokens, requests_per_second=1),)
    conditions = Conditions(prompt_tokens=8, output_tokens=8)
    return Profile(hardware="cpu", steps=steps, conditions=conditions, measured_at=datetime.now(UTC))


@pytest.fixture
def published(house):
    """Publishes `chat` as the manifest says, generation 1 serving."""

    def publish(given):
        files = (ArtifactFile(path="config.json", sha256="0" * 64, size_bytes=1),)
        made = SnapshotManifest(engine="vllm", signature=Signature(inputs=(), outputs=()), files=files)
        with house.store.begin() as repository:
            repository.put_model(given, expected_version=None)
            repository.publish("chat", {"llm": SnapshotSource(manifest=made, uri="file:///x")}, change_id="c")
            repository.update_model("chat", serving_generation=1)
        return house.store

    return publish


def options_of(problem):
    return [option.qps for model in problem.models for part in model.parts for option in part.options]


def replicas_of(problem):
    return sum(row.count for row in solve(problem).replicas)


def test_a_plan_needs_as_many_replicas_as_were_measured_to_carry_the_demand(published):
    store = published(manifest(tokensPerSecond=500))
    with store.read() as repository:
        before = residual_problem(repository, "chat", generation=1, objective=OBJECTIVE)
    assert (options_of(before), replicas_of(before)) == ([500], 2)
    with store.begin() as repository:
        repository.add_profile("chat", "llm", 1, profile(110.0))
    with store.read() as repository:
        one = residual_problem(repository, "chat", generation=1, objective=OBJECTIVE)
        fleet = fleet_snapshot(repository, OBJECTIVE, REPLAN_LIMITS)
        facts = read_facts(repository, "chat", 1)
    assert (options_of(one), replicas_of(one)) == ([110], 10)
    assert (options_of(fleet.problem), fleet.tokens) == ([110], {"chat"})
    assert facts.manifest.spec.parts[0].hardware[0].throughput == 110
    assert one.models[0].demand[0].qps == 1000


def test_a_part_that_nobody_measured_is_no_problem_of_the_planner_but_an_error_that_says_so(published):
    store = published(manifest())
    with store.read() as repository, pytest.raises(InvalidInput, match="hardware cpu: profile: true, and no profile"):
        model_problem(model_as_served(repository, "chat", 1))
    with store.begin() as repository:
        repository.add_profile("chat", "llm", 1, profile(110.0))
        assert options_of(residual_problem(repository, "chat", generation=1)) == [110]


def test_the_next_replan_moves_by_a_new_profile_and_says_why_in_tokens(published):
    store = published(manifest(tokensPerSecond=500))

    def replan(number):
        with store.begin() as repository:
            repository.add_replan(f"profile-{number}", "profile")
        policy = PlanningPolicy(objective=OBJECTIVE, replan_limits=REPLAN_LIMITS)
        found = FleetReplan(store, ThreadSolver(), policy, say=lambda _: None)
        return found.compute(f"plan-{number}", run_id=f"run-{number}")

    assert replan(1).message == "the first plan"
    assert not replan(2).adopted
    with store.begin() as repository:
        repository.add_profile("chat", "llm", 1, profile(110.0))
    computed = replan(3)
    assert computed.adopted
    assert "1000 tokens/s sent to replicas that do 220 tokens/s" in computed.message
    with store.read() as repository:
        assert [row.count for row in repository.placement("chat").replicas] == [10]


def plan(*unmet):
    solver = SolverInfo(method="seen", seconds=0.0)
    told = {"status": "feasible", "objective": 1, "bound": 0, "gap": 1, "bound_covers": "-", "cost_per_hour": 1}
    return Plan(**told, replicas=(), traffic=(), unmet=unmet, solver=solver)


def test_a_refused_drain_tells_each_model_in_its_unit():
    unmet = [Unmet(model=m, region="a", qps=q, rules=("supply b/cpu",)) for m, q in (("chat", 300), ("ranker", 2))]
    _, told = refusal_of(plan(*unmet), (), tokens={"chat"})
    assert "chat: 300 tokens/s of a (supply b/cpu); ranker: 2 requests/s of a" in told


def test_a_plan_that_no_longer_holds_says_so_in_tokens(published):
    store = published(manifest(tokensPerSecond=500))
    with store.begin() as repository:
        before = fleet_snapshot(repository, OBJECTIVE, REPLAN_LIMITS).problem
        repository.add_profile("chat", "llm", 1, profile(110.0))
        after = fleet_snapshot(repository, OBJECTIVE, REPLAN_LIMITS).problem
    verdict = replaces(solve(after), solve(before), after, dead_band=0.0, tokens={"chat"})
    assert "chat/llm in us-east: 1000 tokens/s sent to replicas that do 220 tokens/s" in verdict.message
    plain = replaces(solve(after), solve(before), after, dead_band=0.0)
    assert "1000 QPS sent to replicas that do 220 QPS" in plain.message


def test_a_better_plan_tells_what_it_serves_more_in_both_units(published, house, kit):
    store = published(manifest(tokensPerSecond=500))
    with store.begin() as repository:
        repository.put_model(parse_manifest(kit.manifest("ranker")), expected_version=None)
        problem = fleet_snapshot(repository, OBJECTIVE, REPLAN_LIMITS).problem
    held = solve(
        problem.model_copy(update={"supply": tuple(s.model_copy(update={"units": 0.5}) for s in problem.supply)})
    )
    verdict = replaces(solve(problem), held, problem, dead_band=0.0, tokens={"chat"})
    assert verdict.adopt
    assert verdict.message == "1000 tokens/s more are served"
