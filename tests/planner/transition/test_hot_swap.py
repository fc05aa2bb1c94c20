"""Hot swaps: replicas go over where they stand, and the checker takes no more than that."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipnext.model.planning.transition import GenerationReplicas, Swap
from planner.transition.planner import StepPolicy, admit, check_transition, plan_transition
from tests.planner.moving import moving_fleets, policies

SWAP = StepPolicy(canary=0.1, max_step=0.5, refresh="swap")


def one_part(problem, model, counts, *, supply=None, hardware=("h",), demand=None):
    """A model of one part whose `counts` by region are just able to serve those regions' users."""
    demand = demand or {region: 100.0 * count for region, count in counts.items()}
    stated = model("m", demand, parts={"p": dict.fromkeys(hardware, (1.0, 100.0))}, tolerance=5.0)
    return problem(stated, supply=supply or {f"{region}/h": count for region, count in counts.items()})


def at(state, counts, generation=1, hardware="h"):
    return state(
        {f"m/p/{region}/{hardware}/{generation}": count for region, count in counts.items()},
        {f"m/{region}/{region}/{generation}": 1.0 for region in counts},
    )


def steps(transition):
    """Of each wave: the counts that are new by (region, generation), and the shares of generation 2 by region."""
    return [
        (
            {(row.region, row.generation): row.count for row in wave.scale_up},
            {c.origin: round(sum(s.fraction for s in c.shares if s.generation == 2), 9) for c in wave.route},
        )
        for wave in transition.waves
    ]


def test_one_replica_goes_over_at_once_on_its_own_unit(problem, model, state):
    stated = one_part(problem, model, {"a": 1})
    planned, admission = admit(stated, at(state, {"a": 1}), at(state, {"a": 1}, 2), {"m": SWAP})
    assert steps(planned) == [({("a", 1): 0, ("a", 2): 1}, {"a": 1.0})]
    assert (planned.refresh, planned.surge, planned.dips) == ("swap", (), ())
    assert planned.swaps == admission.swaps == (Swap(model="m", part="p", region="a", replicas=1, fraction=1.0),)
    assert [wave.scale_down for wave in planned.waves] == [()]


@pytest.mark.parametrize(
    ("count", "canary", "max_step", "reached"),
    [
        (2, 0.1, 0.5, [1, 2]),
        (3, 0.1, 0.5, [1, 2, 3]),
        (4, 0.1, 0.5, [1, 3, 4]),
        (4, 1.0, 1.0, [2, 4]),
        (10, 0.1, 0.5, [1, 6, 10]),
        (10, 0.25, 0.25, [2, 4, 6, 8, 10]),
    ],
)
def test_whole_replicas_follow_canary_and_step_and_never_more_than_half_at_a_time(
    problem, model, state, count, canary, max_step, reached
):
    stated = one_part(problem, model, {"a": count})
    policy = StepPolicy(canary=canary, max_step=max_step, refresh="swap", hold_seconds=3.0)
    planned = plan_transition(stated, at(state, {"a": count}), at(state, {"a": count}, 2), {"m": policy})
    assert [counts["a", 2] for counts, _ in steps(planned)] == reached
    assert [counts["a", 1] for counts, _ in steps(planned)] == [count - k for k in reached]
    assert [shares["a"] for _, shares in steps(planned)] == pytest.approx([k / count for k in reached])
    assert [wave.gate for wave in planned.waves] == ["canary", *["step"] * (len(reached) - 2), "final"]
    assert {wave.hold_seconds for wave in planned.waves} == {3.0}


def test_a_region_whose_one_replica_is_more_than_a_step_goes_alone(problem, model, state):
    counts = {"a": 1, "b": 1}
    stated = one_part(problem, model, counts)
    planned = plan_transition(stated, at(state, counts), at(state, counts, 2), {"m": SWAP})
    assert [shares for _, shares in steps(planned)] == [{"a": 1.0}, {"b": 1.0}]


def test_a_rollout_that_was_stopped_goes_on_and_back_by_swapping(problem, model, state):
    stated = one_part(problem, model, {"a": 2})
    half = state({"m/p/a/h/1": 1, "m/p/a/h/2": 1}, {"m/a/a/1": 0.5, "m/a/a/2": 0.5})
    for goal in (1, 2):
        planned = plan_transition(stated, half, at(state, {"a": 2}, goal), {"m": SWAP})
        assert [counts for counts, _ in steps(planned)] == [{("a", 3 - goal): 0, ("a", goal): 2}]
        assert planned.surge == ()


def test_what_has_no_former_replica_starts_and_what_has_no_later_one_ends(problem, model, state):
    stated = one_part(problem, model, {"a": 2, "b": 1}, supply={"a/h": 3, "b/h": 1}, demand={"a": 200.0})
    more = state({"m/p/a/h/2": 3}, {"m/a/a/2": 1.0})
    grown = plan_transition(stated, at(state, {"a": 2}), more, {"m": SWAP})
    assert [counts for counts, _ in steps(grown)] == [
        {("a", 1): 1, ("a", 2): 1},
        {("a", 1): 0, ("a", 2): 2},
        {("a", 2): 3},
    ]
    shrunk = plan_transition(stated, at(state, {"a": 3}), at(state, {"a": 2}, 2), {"m": SWAP})
    assert shrunk.waves[-1].scale_down == (row(2, 2),)
    assert sum(swap.replicas for swap in shrunk.swaps) == 3


def test_another_hardware_kind_is_replaced_not_swapped(problem, model, state):
    stated = one_part(problem, model, {"a": 1}, supply={"a/h": 1, "a/k": 1}, hardware=("h", "k"))
    planned = plan_transition(stated, at(state, {"a": 1}), at(state, {"a": 1}, 2, "k"), {"m": SWAP})
    assert planned.swaps == ()
    assert [len(wave.scale_up) for wave in planned.waves if wave.scale_up]
    assert planned.waves[-1].scale_down == (row(1, 0),)


@pytest.mark.parametrize(("fewer", "more"), [(1, 2), (2, 1)], ids=["a part more", "a part less"])
def test_generations_with_other_parts_are_replaced(problem, model, state, fewer, more):
    stated = problem(model("m", parts={"p": {"h": (1.0, 100.0)}, "q": {"h": (1.0, 100.0)}}), supply={"a/h": 3})
    policy = SWAP.model_copy(update={"calls": {fewer: ("p",), more: ("p", "q")}})
    ends = {
        fewer: state({f"m/p/a/h/{fewer}": 1}, {f"m/a/a/{fewer}": 1.0}),
        more: state({f"m/p/a/h/{more}": 1, f"m/q/a/h/{more}": 1}, {f"m/a/a/{more}": 1.0}),
    }
    planned = plan_transition(stated, ends[1], ends[2], {"m": policy})
    assert planned.refused is None
    assert (planned.swaps, planned.surge[0].units) == ((), 1.0)


def test_parts_of_other_counts_go_over_in_equal_shares(problem, model, state):
    stated = problem(model("m", parts={"p": {"h": (1.0, 50.0)}, "q": {"h": (1.0, 25.0)}}), supply={"a/h": 6})
    ends = [state({f"m/p/a/h/{g}": 2, f"m/q/a/h/{g}": 4}, {f"m/a/a/{g}": 1.0}) for g in (1, 2)]
    planned = plan_transition(stated, *ends, {"m": SWAP})
    told = [{(r.part, r.generation): r.count for r in wave.scale_up} for wave in planned.waves]
    assert told == [
        {("p", 1): 1, ("p", 2): 1, ("q", 1): 2, ("q", 2): 2},
        {("p", 1): 0, ("p", 2): 2, ("q", 1): 0, ("q", 2): 4},
    ]


def test_what_is_missing_at_the_start_goes_along_and_nothing_more(problem, model, state):
    """Two replicas where three are needed: so the rollout goes, and each wave is checked against that."""
    stated = one_part(problem, model, {"a": 2}, demand={"a": 300.0})
    planned, _ = admit(stated, at(state, {"a": 2}), at(state, {"a": 2}, 2), {"m": SWAP})
    assert planned.refused is None
    assert planned.swaps[0].fraction == pytest.approx(1 / 3)


def row(generation, count, hardware="h"):
    return GenerationReplicas(model="m", part="p", generation=generation, region="a", hardware=hardware, count=count)


@pytest.fixture
def rollout(problem, model, state):
    """A valid swap of four replicas in three waves."""
    stated = one_part(problem, model, {"a": 4})
    planned = plan_transition(stated, at(state, {"a": 4}), at(state, {"a": 4}, 2), {"m": SWAP})
    assert check_transition(stated, planned, {"m": SWAP}) == ()
    return stated, planned


def with_wave(planned, number, **changes):
    waves = list(planned.waves)
    waves[number] = waves[number].model_copy(update=changes)
    return planned.model_copy(update={"waves": tuple(waves)})


def rules(stated, planned, policy=SWAP):
    return {violation.rule for violation in check_transition(stated, planned, {"m": policy})}


def test_a_wave_that_goes_on_lacking_after_its_route_is_found(rollout):
    """Three replicas go over, and the traffic of one follows."""
    stated, planned = rollout
    wrong = with_wave(planned, 0, scale_up=(row(1, 1), row(2, 3)))
    assert "capacity" in rules(stated, wrong)


def test_a_replica_that_ends_instead_of_going_over_is_found(rollout):
    stated, planned = rollout
    assert "order" in rules(stated, with_wave(planned, 0, scale_up=(row(1, 2), row(2, 1))))


def test_a_swap_is_no_order_of_another_policy(rollout):
    stated, planned = rollout
    assert "order" in rules(stated, planned, SWAP.model_copy(update={"refresh": "replace"}))


def test_a_canary_of_more_than_one_replica_is_found(rollout):
    stated, planned = rollout
    wrong = with_wave(planned, 0, scale_up=(row(1, 2), row(2, 2)), route=half(planned))
    assert {"canary"} <= rules(stated, wrong)


def half(planned):
    (change,) = planned.waves[0].route
    return (change.model_copy(update={"shares": tuple(s.model_copy(update={"fraction": 0.5}) for s in change.shares)}),)


def test_more_traffic_than_the_replica_that_goes_over_serves_is_found(problem, model, state):
    """With room to spare no generation would be short."""
    stated = one_part(problem, model, {"a": 4}, demand={"a": 100.0})
    planned = plan_transition(stated, at(state, {"a": 4}), at(state, {"a": 4}, 2), {"m": SWAP})
    assert "canary" in rules(stated, with_wave(planned, 0, route=half(planned)))


def test_swaps_that_are_not_stated_or_miss_more_than_stated_are_found(rollout):
    stated, planned = rollout
    (swap,) = planned.swaps
    fewer, less = swap.model_copy(update={"replicas": 3}), swap.model_copy(update={"fraction": 0.2})
    assert [rules(stated, planned.model_copy(update={"swaps": told})) for told in ((), (fewer,), (less,))] == [
        {"swap"},
        {"swap"},
        {"swap"},
    ]


def test_a_swap_of_a_name_that_is_not_there_is_found(rollout):
    stated, planned = rollout
    (swap,) = planned.swaps
    assert rules(stated, planned.model_copy(update={"swaps": (swap, swap.model_copy(update={"part": "x"}))})) == {
        "names"
    }


def test_a_move_without_a_swap_is_paced_as_ever(problem, model, state):
    """The placement changes behind the swaps, a step at a time."""
    stated = one_part(problem, model, {"a": 2}, supply={"a/h": 2, "b/h": 2})
    stated = stated.model_copy(
        update={"models": (stated.models[0].model_copy(update={"latency_tolerance_ms": 100.0}),)}
    )
    to = state({"m/p/b/h/1": 2}, {"m/a/b/1": 1.0})
    planned = plan_transition(stated, at(state, {"a": 2}), to, {"m": SWAP})
    assert planned.swaps == ()
    moved = [sum(s.fraction for s in c.shares if s.to == "b") for wave in planned.waves for c in wave.route]
    assert moved == [0.5, 1.0]


@given(fleet=moving_fleets(policies.map(lambda p: p.model_copy(update={"refresh": "swap"}))))
@settings(max_examples=80, deadline=None)
def test_drawn_fleets_swap_on_the_units_that_they_have_or_are_refused(fleet):
    stated, origin, to, chosen = fleet
    planned, admission = admit(stated, origin, to, chosen)
    assert "would break" not in (planned.refused or "")
    assert check_transition(stated, planned, chosen) == ()
    assert planned.swaps == admission.swaps
    for wave in planned.waves:
        swapped = {item.model for item in wave.scale_up if (item.model, item.generation) in leaving(origin, wave)}
        assert not swapped or not wave.scale_down


def leaving(origin, wave):
    """(model, generation) of rows that a wave's scale_up takes to zero."""
    there = {(r.model, r.generation) for r in origin.replicas}
    return {(r.model, r.generation) for r in wave.scale_up if not r.count} & there


@given(data=st.data())
@settings(max_examples=60, deadline=None)
def test_where_the_counts_stay_no_unit_more_is_ever_taken(problem, model, state, data):
    counts = {region: data.draw(st.integers(1, 9)) for region in data.draw(st.sampled_from(["a", "ab"]))}
    policy = StepPolicy(
        canary=data.draw(st.sampled_from([0.01, 0.1, 0.3, 1.0])),
        max_step=data.draw(st.sampled_from([0.07, 0.3, 0.5, 1.0])),
        refresh="swap",
    )
    stated = one_part(problem, model, counts)
    planned = plan_transition(stated, at(state, counts), at(state, counts, 2), {"m": policy})
    assert (planned.refused, planned.surge, planned.dips) == (None, (), ())
    assert all(swap.fraction <= 0.5 + 1e-6 for swap in planned.swaps if counts[swap.region] > 1)
    assert check_transition(stated, planned, {"m": policy}) == ()
