import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipnext.errors import InvalidInput
from ipnext.model.planning.transition import FleetState, GenerationReplicas, RouteChange, Share, SurgeItem, Wave
from planner.transition.planner import StepPolicy, check_transition, plan_transition

REPLACE = StepPolicy(refresh="replace")


def parts_problem(problem, model, sizes, slack=0.0, supply=None):
    """One model of parts with these many replicas in region a, each part just able to hold all traffic."""
    parts = {f"p{i}": {"h": (1.0, 1000.0 / n)} for i, n in enumerate(sizes)}
    return problem(model("m", {"a": 1000.0}, parts=parts), supply=supply or {"a/h": sum(sizes) + slack})


def serving(state, sizes, generation, region="a"):
    counts = {f"m/p{i}/{region}/h/{generation}": n for i, n in enumerate(sizes)}
    return state(counts, {f"m/a/{region}/{generation}": 1.0})


def shares_of(transition):
    """Share of generation 2 from region a after each wave that routes."""
    return [
        sum(share.fraction for share in change.shares if share.generation == 2)
        for wave in transition.waves
        for change in wave.route
    ]


def test_twenty_steps_need_at_most_four_extra_replicas_of_fifty_four(problem, model, state):
    sizes = [4, 10, 40]
    policies = {"m": StepPolicy(canary=0.05, max_step=0.05, refresh="replace")}
    stated = parts_problem(problem, model, sizes, slack=4.0)
    planned = plan_transition(stated, serving(state, sizes, 1), serving(state, sizes, 2), policies)
    assert planned.refused is None
    assert len(planned.waves) == 20
    assert planned.surge == (SurgeItem(region="a", hardware="h", units=4.0),)
    assert check_transition(stated, planned, policies) == ()


def test_smaller_steps_fit_a_smaller_surge(problem, model, state):
    sizes = [4, 10, 40]
    stated = parts_problem(problem, model, sizes, slack=3.0)
    planned = plan_transition(stated, serving(state, sizes, 1), serving(state, sizes, 2), {"m": REPLACE})
    assert planned.refused is None
    assert planned.surge[0].units <= 3.0


def test_without_room_a_replacement_is_refused_with_the_surge_and_the_dip(problem, model, state):
    sizes = [4, 10, 40]
    stated = parts_problem(problem, model, sizes)
    planned = plan_transition(stated, serving(state, sizes, 1), serving(state, sizes, 2), {"m": REPLACE})
    assert planned.waves == ()
    assert "3 units more of a/h" in planned.refused
    assert "0.075 of m/p2 in a" in planned.refused
    assert planned.surge == (SurgeItem(region="a", hardware="h", units=3.0),)
    assert check_transition(stated, planned, {"m": REPLACE}) == ()


def test_generations_side_by_side_need_no_surge(problem, model, state):
    sizes = [4, 10, 40]
    stated = parts_problem(problem, model, sizes)
    planned = plan_transition(stated, serving(state, sizes, 1), serving(state, sizes, 2), {})
    assert planned.refused is None
    assert planned.surge == ()


def test_the_steps_are_the_canary_and_then_max_step(problem, model, state):
    policies = {"m": StepPolicy(canary=0.1, max_step=0.4, hold_seconds=7.0)}
    stated = parts_problem(problem, model, [4])
    planned = plan_transition(stated, serving(state, [4], 1), serving(state, [4], 2), policies)
    assert shares_of(planned) == pytest.approx([0.1, 0.5, 0.9, 1.0])
    assert [wave.gate for wave in planned.waves] == ["canary", "step", "step", "final"]
    assert {wave.hold_seconds for wave in planned.waves} == {7.0}


def test_a_canary_larger_than_max_step_is_cut(problem, model, state):
    policies = {"m": StepPolicy(canary=1.0, max_step=0.5)}
    planned = plan_transition(
        parts_problem(problem, model, [4]), serving(state, [4], 1), serving(state, [4], 2), policies
    )
    assert shares_of(planned) == pytest.approx([0.5, 1.0])


def test_a_first_rollout_is_one_wave(problem, model, state):
    stated = parts_problem(problem, model, [4, 3])
    planned = plan_transition(stated, FleetState(), serving(state, [4, 3], 1), {})
    assert [(wave.gate, shares) for wave, shares in zip(planned.waves, [1.0], strict=True)] == [("final", 1.0)]
    assert planned.waves[0].route[0].shares == (Share(to="a", generation=1, fraction=1.0),)


def test_retiring_routes_first_and_releases_after(problem, model, state):
    stated = parts_problem(problem, model, [4])
    planned = plan_transition(stated, serving(state, [4], 1), FleetState(), {})
    (wave,) = planned.waves
    assert wave.route == (RouteChange(model="m", origin="a", shares=()),)
    assert [(item.generation, item.count) for item in wave.scale_down] == [(1, 0)]


def test_nothing_to_do_is_no_wave(problem, model, state):
    stated = parts_problem(problem, model, [4])
    planned = plan_transition(stated, serving(state, [4], 1), serving(state, [4], 1), {})
    assert (planned.waves, planned.refused) == ((), None)


@pytest.mark.parametrize("generation", [1, 2])
def test_a_move_to_another_region_steps(problem, model, state, generation):
    stated = parts_problem(problem, model, [4], supply={"a/h": 4.0, "b/h": 4.0})
    policies = {"m": StepPolicy(canary=0.2, max_step=0.5, refresh="replace")}
    planned = plan_transition(stated, serving(state, [4], 1), serving(state, [4], generation, "b"), policies)
    assert planned.refused is None
    assert [wave.gate for wave in planned.waves] == (
        ["step", "final"] if generation == 1 else ["canary", "step", "final"]
    )
    assert planned.surge == ()


def test_warm_generations_stay_loaded(problem, model, state):
    stated = parts_problem(problem, model, [4])
    to = state({"m/p0/a/h/1": 4, "m/p0/a/h/2": 4}, {"m/a/a/2": 1.0})
    planned = plan_transition(stated, serving(state, [4], 1), to, {})
    assert planned.refused is None
    assert all(wave.scale_down == () for wave in planned.waves)


def test_scaling_alone_is_one_wave_without_routes(problem, model, state):
    stated = parts_problem(problem, model, [4], slack=2.0)
    planned = plan_transition(stated, serving(state, [4], 1), serving(state, [6], 1), {})
    (wave,) = planned.waves
    assert (wave.route, wave.gate) == ((), "final")


def test_what_one_model_frees_another_takes_in_a_later_wave(problem, model, state):
    stated = problem(model("x"), model("y"), supply={"a/h": 2.0, "b/h": 1.0})
    origin = state({"x/p/a/h/1": 2, "y/p/b/h/1": 1}, {"x/a/a/1": 1.0, "y/a/b/1": 1.0})
    to = state({"x/p/a/h/1": 1, "y/p/a/h/1": 1}, {"x/a/a/1": 1.0, "y/a/a/1": 1.0})
    planned = plan_transition(stated, origin, to, {})
    freed = [n for n, wave in enumerate(planned.waves) for item in wave.scale_down if item.model == "x"]
    taken = [n for n, wave in enumerate(planned.waves) for item in wave.scale_up if item.model == "y"]
    assert planned.refused is None
    assert max(freed) < min(taken)


def test_a_model_waits_for_one_that_frees_whatever_their_names(problem, model, state):
    stated = problem(model("x"), model("y"), supply={"a/h": 1.0, "b/h": 1.0, "c/h": 1.0}, regions=["a", "b", "c"])
    origin = state({"x/p/b/h/1": 1, "y/p/a/h/1": 1}, {"x/a/b/1": 1.0, "y/a/a/1": 1.0})
    to = state({"x/p/a/h/1": 1, "y/p/c/h/1": 1}, {"x/a/a/1": 1.0, "y/a/c/1": 1.0})
    assert plan_transition(stated, origin, to, {}).refused is None


def test_a_swap_without_room_is_refused(problem, model, state):
    stated = problem(model("x"), model("y"), supply={"a/h": 1.0, "b/h": 1.0})
    origin = state({"x/p/a/h/1": 1, "y/p/b/h/1": 1}, {"x/a/a/1": 1.0, "y/a/b/1": 1.0})
    to = state({"x/p/b/h/1": 1, "y/p/a/h/1": 1}, {"x/a/b/1": 1.0, "y/a/a/1": 1.0})
    planned = plan_transition(stated, origin, to, {})
    assert "x, y" in planned.refused
    assert planned.surge != ()


def test_supply_taken_away_counts_as_what_runs_until_it_is_released(problem, model, state):
    stated = parts_problem(problem, model, [4], supply={"a/h": 1.0, "b/h": 4.0})
    planned = plan_transition(stated, serving(state, [4], 1), serving(state, [4], 1, "b"), {})
    assert planned.refused is None
    back = plan_transition(stated, serving(state, [4], 1, "b"), serving(state, [4], 1), {})
    assert "supply" in back.refused


@pytest.mark.parametrize(
    ("to", "rule"),
    [
        ({"m/p0/a/h/2": 3}, "capacity"),
        ({"m/p0/a/h/2": 9}, "supply"),
    ],
)
def test_a_target_that_breaks_a_rule_is_refused(problem, model, state, to, rule):
    stated = parts_problem(problem, model, [4])
    planned = plan_transition(stated, serving(state, [4], 1), state(to, {"m/a/a/2": 1.0}), {})
    assert rule in planned.refused


def test_a_target_beyond_the_tolerance_is_refused(problem, model, state):
    stated = problem(model("m", tolerance=5.0), supply={"a/h": 1.0, "b/h": 1.0})
    origin, to = state({"m/p/a/h/1": 1}, {"m/a/a/1": 1.0}), state({"m/p/b/h/1": 1}, {"m/a/b/1": 1.0})
    assert "latency" in plan_transition(stated, origin, to, {}).refused
    assert plan_transition(stated, to, origin, {}).refused is None


def test_an_origin_short_of_capacity_may_become_better(problem, model, state):
    stated = parts_problem(problem, model, [4])
    planned = plan_transition(stated, serving(state, [2], 1), serving(state, [4], 1), {})
    assert planned.refused is None


@pytest.mark.parametrize("key", ["x/p0/a/h/1", "m/x/a/h/1", "m/p0/x/h/1", "m/p0/a/g/1"])
def test_names_that_the_problem_does_not_have_are_bad_input(problem, model, state, key):
    with pytest.raises(InvalidInput, match=r"to\.replicas\[0\]"):
        plan_transition(parts_problem(problem, model, [4]), FleetState(), state({key: 1}), {})


sizes = st.lists(st.integers(1, 30), min_size=1, max_size=3)
policies = st.builds(
    StepPolicy,
    canary=st.sampled_from([0.01, 0.1, 1.0]),
    max_step=st.sampled_from([0.07, 0.3, 1.0]),
    refresh=st.sampled_from(["in_place", "replace"]),
)


@given(old=sizes, policy=policies, data=st.data())
@settings(max_examples=100, deadline=None)
def test_every_transition_keeps_every_rule_and_ends_at_the_target(problem, model, state, old, policy, data):
    """From one region to a split over two, larger or smaller, with enough room."""
    generation, split = data.draw(st.sampled_from([1, 2])), data.draw(st.sampled_from([0.0, 0.25, 1.0]))
    extra = data.draw(st.lists(st.integers(0, 9), min_size=len(old), max_size=len(old)))
    counts, shares = {}, {}
    for region, share in (("a", 1 - split), ("b", split)):
        if share:
            shares[f"m/a/{region}/{generation}"] = share
            for i, n in enumerate(old):
                counts[f"m/p{i}/{region}/h/{generation}"] = math.ceil(n * share) + extra[i]
    units = 2.0 * (sum(old) + sum(extra)) + len(old)
    stated = parts_problem(problem, model, old, supply={"a/h": units, "b/h": units})
    planned = plan_transition(stated, serving(state, old, 1), state(counts, shares), {"m": policy})
    assert planned.refused is None
    assert check_transition(stated, planned, {"m": policy}) == ()


@given(data=st.data(), tight=st.integers(0, 4))
@settings(max_examples=50, deadline=None)
def test_models_that_share_a_supply_move_safely_or_are_refused(problem, model, state, data, tight):
    names, ends = ["x", "y", "z"], []
    for _ in range(2):
        counts, shares = {}, {}
        for name in names:
            region, n = data.draw(st.sampled_from("ab")), data.draw(st.integers(1, 4))
            generation = data.draw(st.integers(1, 2))
            counts[f"{name}/p/{region}/h/{generation}"] = n
            shares[f"{name}/a/{region}/{generation}"] = 1.0
        ends.append((counts, shares))
    used = {r: max(sum(n for k, n in counts.items() if f"/{r}/" in k) for counts, _ in ends) for r in "ab"}
    stated = problem(*map(model, names), supply={f"{r}/h": float(n + tight) for r, n in used.items()})
    origin, to = (state(*end) for end in ends)
    planned = plan_transition(stated, origin, to, dict.fromkeys(names, REPLACE))
    assert check_transition(stated, planned, dict.fromkeys(names, REPLACE)) == ()
    assert planned.refused is None or planned.surge


@pytest.fixture
def rollout(problem, model, state):
    """A valid transition in four waves, with its problem and policies."""
    policies = {"m": StepPolicy(canary=0.1, max_step=0.4, refresh="replace")}
    stated = parts_problem(problem, model, [4, 10], slack=7.0)
    planned = plan_transition(stated, serving(state, [4, 10], 1), serving(state, [4, 10], 2), policies)
    assert check_transition(stated, planned, policies) == ()
    return stated, planned, policies


def broken(rollout, number, **fields):
    """Rules that break when one wave is changed."""
    stated, planned, policies = rollout
    waves = list(planned.waves)
    waves[number] = waves[number].model_copy(update=fields)
    changed = planned.model_copy(update={"waves": tuple(waves)})
    return {violation.rule for violation in check_transition(stated, changed, policies)}


def test_traffic_before_its_replicas_is_caught(rollout):
    assert "capacity" in broken(rollout, 1, scale_up=())


def test_an_early_release_is_caught(rollout):
    _, planned, _ = rollout
    down = tuple(item.model_copy(update={"count": 0}) for item in planned.waves[1].scale_down)
    assert "capacity" in broken(rollout, 1, scale_down=down)


def test_more_units_than_the_supply_are_caught(rollout):
    up = GenerationReplicas(model="m", part="p0", generation=2, region="a", hardware="h", count=40)
    assert {"supply", "surge"} <= broken(rollout, 0, scale_up=(up,))


def test_a_share_that_goes_missing_is_caught(rollout):
    route = (RouteChange(model="m", origin="a", shares=(Share(to="a", generation=1, fraction=0.6),)),)
    assert "served" in broken(rollout, 0, route=route)


def test_too_large_a_step_and_too_large_a_canary_are_caught(rollout):
    shares = (Share(to="a", generation=1, fraction=0.5), Share(to="a", generation=2, fraction=0.5))
    assert {"max_step", "canary"} <= broken(rollout, 0, route=(RouteChange(model="m", origin="a", shares=shares),))


def test_traffic_beyond_the_tolerance_is_caught(rollout):
    shares = (Share(to="a", generation=1, fraction=0.9), Share(to="b", generation=1, fraction=0.1))
    stated, planned, policies = rollout
    near = stated.models[0].model_copy(update={"latency_tolerance_ms": 5.0})
    changed = stated.model_copy(update={"models": (near,)}), planned, policies
    assert "latency" in broken(changed, 0, route=(RouteChange(model="m", origin="a", shares=shares),))


def test_an_end_that_is_not_the_target_is_caught(rollout):
    assert broken(rollout, 3, scale_down=()) == {"end"}
    assert "end" in broken(rollout, 3, route=())


def test_a_scale_up_that_takes_away_is_caught(rollout):
    down = GenerationReplicas(model="m", part="p0", generation=1, region="a", hardware="h", count=1)
    up = GenerationReplicas(model="m", part="p0", generation=1, region="a", hardware="h", count=5)
    assert "order" in broken(rollout, 0, scale_up=(down,))
    assert "order" in broken(rollout, 0, scale_down=(up,))


def test_an_unknown_name_in_a_wave_is_caught(rollout):
    odd = GenerationReplicas(model="m", part="p0", generation=1, region="mars", hardware="h", count=1)
    assert broken(rollout, 0, scale_up=(odd,)) == {"names"}


def test_a_surge_that_is_not_stated_is_caught(rollout):
    stated, planned, policies = rollout
    quiet = planned.model_copy(update={"surge": ()})
    assert {violation.rule for violation in check_transition(stated, quiet, policies)} == {"surge"}


def test_a_refusal_with_waves_or_without_a_reason_is_caught(rollout):
    stated, planned, policies = rollout
    refused = planned.model_copy(update={"refused": ""})
    assert len(check_transition(stated, refused, policies)) == 2


def test_no_wave_at_all_is_caught(rollout):
    stated, planned, policies = rollout
    stopped = planned.model_copy(update={"waves": (Wave(),)})
    assert "end" in {violation.rule for violation in check_transition(stated, stopped, policies)}


def test_side_by_side_the_processes_must_hold_all_generations_together(problem, model, state):
    stated = parts_problem(problem, model, [4])
    half = state({"m/p0/a/h/1": 2, "m/p0/a/h/2": 2}, {"m/a/a/1": 0.5, "m/a/a/2": 0.5})
    planned = plan_transition(stated, serving(state, [4], 1), half, {})
    assert "capacity" in planned.refused
    apart = {"m": StepPolicy(canary=0.5, refresh="replace")}
    roomy = parts_problem(problem, model, [4], slack=2.0)
    assert plan_transition(roomy, serving(state, [4], 1), half, apart).refused is None


def other_parts(problem, model, state, *, units):
    """Generation 1 calls p0 and p1, generation 2 calls p0 and p2: the same model, cut otherwise."""
    parts = {name: {"h": (1.0, 500.0)} for name in ("p0", "p1", "p2")}
    stated = problem(model("m", {"a": 1000.0}, parts=parts), supply={"a/h": units})
    origin = state({"m/p0/a/h/1": 2, "m/p1/a/h/1": 2}, {"m/a/a/1": 1.0})
    to = state({"m/p0/a/h/2": 2, "m/p2/a/h/2": 2}, {"m/a/a/2": 1.0})
    return stated, origin, to


CALLS = {1: ("p0", "p1"), 2: ("p0", "p2")}


def test_each_generation_needs_only_the_parts_that_its_requests_call(problem, model, state):
    stated, origin, to = other_parts(problem, model, state, units=6.0)
    policies = {"m": StepPolicy(canary=0.5, calls=CALLS)}
    planned = plan_transition(stated, origin, to, policies)
    assert planned.refused is None
    assert check_transition(stated, planned, policies) == ()
    assert planned.surge == (SurgeItem(region="a", hardware="h", units=1.0),)


def test_a_part_that_a_generation_calls_may_not_lack(problem, model, state):
    stated, origin, to = other_parts(problem, model, state, units=6.0)
    planned = plan_transition(stated, origin, to, {"m": StepPolicy(calls={1: CALLS[1], 2: ("p0", "p1", "p2")})})
    assert "m/p1" in planned.refused
    planned = plan_transition(stated, origin, to, {"m": StepPolicy(calls={1: CALLS[1]})})
    assert "m/p1" in planned.refused, "a generation that is not named calls all parts"
