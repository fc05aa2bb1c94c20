"""What a wave adds for the moment in which its gateways follow one by one, and that it changes nothing else."""

import pytest
from hypothesis import given, settings

from planner.transition import planner as module
from planner.transition.gateway_order import GatewayShift, order_gateways
from planner.transition.gateway_surge import PIECES, GatewaySurge
from planner.transition.planner import StepPolicy, admit, check_transition, plan_transition
from planner.verify.transition_model import ProblemFigures
from tests.planner.moving import moving_fleets

WHOLE = StepPolicy(canary=1.0, max_step=1.0)


def two_regions(problem, model, units, demand=100.0):
    """A model of one part, 100 requests/s a replica, with users in a and b."""
    return problem(model("m", {"a": demand, "b": demand}), supply={"a/h": units, "b/h": units})


def sent(state, to, *, count=1, generation=1):
    """Users of a and b, each answered in one region."""
    counts = {f"m/p/{region}/h/{generation}": count for region in ("a", "b")}
    return state(counts, {f"m/{origin}/{region}/{generation}": 1.0 for origin, region in to.items()})


def counts(rows):
    return {(row.part, row.region, row.hardware, row.generation): row.count for row in rows}


def as_before(problem, origin, to, policies):
    """The transition without what is added while gateways follow."""
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(module, "add_surge", lambda _instance, _origin, waves, _units: GatewaySurge(waves))
        return admit(problem, origin, to, policies)


def least_beyond(problem, transition, policies, model):
    """Of each wave: the requests/s beyond what is carried while the model's gateways follow."""
    facts, held, now = ProblemFigures(problem, policies), dict(_held(transition, model)), dict(_sent(transition, model))
    for wave in transition.waves:
        held |= {key: n for (name, key), n in _rows(wave.scale_up) if name == model}
        moves, then = [], dict(now)
        for change in wave.route:
            if change.model == model:
                mine = {(change.origin, s.to, s.generation): s.fraction for s in change.shares}
                before = facts.load(model, {flow: f for flow, f in now.items() if flow[0] == change.origin})
                after = facts.load(model, mine)
                moves.append(
                    GatewayShift(
                        change.origin, {n: after.get(n, 0.0) - before.get(n, 0.0) for n in {**before, **after}}
                    )
                )
                then = {flow: f for flow, f in then.items() if flow[0] != change.origin} | mine
        yield order_gateways(facts.load(model, now), moves, facts.able(model, held), max_pieces=PIECES).overload
        held |= {key: n for (name, key), n in _rows(wave.scale_down) if name == model}
        now = then


def _rows(rows):
    return [((row.model, (row.part, row.region, row.hardware, row.generation)), row.count) for row in rows]


def _held(transition, model):
    return [(key, n) for (name, key), n in _rows(transition.origin.replicas) if name == model]


def _sent(transition, model):
    return [((t.origin, t.to, t.generation), t.fraction) for t in transition.origin.traffic if t.model == model]


def test_two_regions_that_swap_users_have_one_replica_more_while_their_gateways_follow(problem, model, state):
    swap = sent(state, {"a": "a", "b": "b"}), sent(state, {"a": "b", "b": "a"})
    planned, admission = admit(two_regions(problem, model, 9.0), *swap, {"m": WHOLE})

    [wave] = planned.waves
    assert [row.count for row in wave.scale_up] == [2]
    assert [(row.region, row.count) for row in wave.scale_down] == [(wave.scale_up[0].region, 1)]
    assert [item.units for item in planned.surge] == [1.0]
    assert (admission.mode, admission.surge) == ("surge", planned.surge)
    assert list(least_beyond(two_regions(problem, model, 9.0), planned, {"m": WHOLE}, "m")) == [0.0]


def test_without_a_free_unit_the_swap_goes_as_it_would(problem, model, state):
    swap = sent(state, {"a": "a", "b": "b"}), sent(state, {"a": "b", "b": "a"})
    stated = two_regions(problem, model, 1.0)

    assert admit(stated, *swap, {"m": WHOLE}) == as_before(stated, *swap, {"m": WHOLE})
    assert admit(stated, *swap, {"m": WHOLE})[1].mode == "as is"


@pytest.mark.parametrize("roomy", ["a", "b"])
def test_the_gateways_go_in_the_order_that_needs_a_replica_where_a_unit_is_free(problem, model, state, roomy):
    swap = sent(state, {"a": "a", "b": "b"}), sent(state, {"a": "b", "b": "a"})
    supply = {f"{region}/h": 2.0 if region == roomy else 1.0 for region in ("a", "b")}
    stated = problem(model("m", {"a": 100.0, "b": 100.0}), supply=supply)

    planned = plan_transition(stated, *swap, {"m": WHOLE})

    assert [(row.region, row.count) for wave in planned.waves for row in wave.scale_up] == [(roomy, 2)]
    assert list(least_beyond(stated, planned, {"m": WHOLE}, "m")) == [0.0]


def test_a_swap_that_the_replicas_have_room_for_in_pieces_takes_nothing(problem, model, state):
    swap = sent(state, {"a": "a", "b": "b"}), sent(state, {"a": "b", "b": "a"})

    [wave] = plan_transition(two_regions(problem, model, 9.0, demand=85.0), *swap, {"m": WHOLE}).waves

    assert (wave.scale_up, wave.scale_down) == ((), ())


def test_what_the_next_wave_needs_again_stays(problem, model, state):
    swap = sent(state, {"a": "a", "b": "b"}), sent(state, {"a": "b", "b": "a"})
    planned = plan_transition(two_regions(problem, model, 9.0), *swap, {"m": StepPolicy(max_step=0.25)})

    first, *between, last = planned.waves
    assert len(planned.waves) == 4
    assert [row.count for row in first.scale_up] == [2]
    assert all(not wave.scale_up and not wave.scale_down for wave in between)
    assert (last.scale_up, [row.count for row in last.scale_down]) == ((), [1])


@pytest.mark.parametrize("refresh", ["in_place", "replace"])
def test_users_who_swap_and_get_a_new_generation_at_once_have_room_meanwhile(problem, model, state, refresh):
    policy = {"m": WHOLE.model_copy(update={"refresh": refresh})}
    ends = sent(state, {"a": "a", "b": "b"}), sent(state, {"a": "b", "b": "a"}, generation=2)
    stated = two_regions(problem, model, 9.0)

    planned = plan_transition(stated, *ends, policy)

    assert planned.refused is None
    assert max(least_beyond(stated, planned, policy, "m")) == 0.0
    added = {row.region for wave in planned.waves for row in wave.scale_up if row.count > 1}
    assert bool(added) is (refresh == "in_place")


def test_every_part_that_lacks_gets_its_replicas_on_the_hardware_with_the_fewest_units(problem, model, state):
    parts = {"p": {"h": (4.0, 100.0), "k": (1.0, 100.0)}, "q": {"h": (1.0, 50.0)}}
    stated = problem(
        model("m", {"a": 200.0, "b": 200.0}, parts=parts),
        supply={"a/h": 30.0, "b/h": 30.0, "a/k": 9.0, "b/k": 9.0},
    )
    held = {f"m/p/{r}/{h}/1": 1 for r in ("a", "b") for h in ("h", "k")} | {f"m/q/{r}/h/1": 4 for r in ("a", "b")}
    ends = [state(held, {f"m/{o}/{to}/1": 1.0 for o, to in flows}) for flows in (["aa", "bb"], ["ab", "ba"])]

    [wave] = plan_transition(stated, *ends, {"m": WHOLE}).waves

    assert {(part, kind): n for (part, _, kind, _), n in counts(wave.scale_up).items()} == {
        ("p", "k"): 2,
        ("q", "h"): 5,
    }


def test_of_two_kinds_of_hardware_the_one_with_a_free_unit_is_taken(problem, model, state):
    parts = {"p": {"h": (4.0, 100.0), "k": (1.0, 100.0)}}
    stated = problem(
        model("m", {"a": 200.0, "b": 200.0}, parts=parts),
        supply={"a/h": 30.0, "b/h": 30.0, "a/k": 1.0, "b/k": 1.0},
    )
    held = {f"m/p/{r}/{h}/1": 1 for r in ("a", "b") for h in ("h", "k")}
    ends = [state(held, {f"m/{o}/{to}/1": 1.0 for o, to in flows}) for flows in (["aa", "bb"], ["ab", "ba"])]

    [wave] = plan_transition(stated, *ends, {"m": WHOLE}).waves

    assert {(part, kind): n for (part, _, kind, _), n in counts(wave.scale_up).items()} == {("p", "h"): 2}


@settings(max_examples=150, deadline=None)
@given(moving_fleets())
def test_nothing_is_refused_or_stretched_for_it(drawn):
    problem, origin, to, policies = drawn
    (planned, admission), (before, admitted) = admit(*drawn), as_before(*drawn)

    assert (admission.feasible, planned.refused, planned.dips) == (admitted.feasible, before.refused, before.dips)
    assert [wave.route for wave in planned.waves] == [wave.route for wave in before.waves]
    assert check_transition(problem, planned, policies) == ()
    alone = {
        name for name in policies if len({t.origin for end in (origin, to) for t in end.traffic if t.model == name}) < 2
    }
    for wave, other in zip(planned.waves, before.waves, strict=True):
        for rows, others in ((wave.scale_up, other.scale_up), (wave.scale_down, other.scale_down)):
            assert [row for row in rows if row.model in alone] == [row for row in others if row.model in alone]


@settings(max_examples=150, deadline=None)
@given(moving_fleets())
def test_where_units_are_free_no_gateway_sends_beyond_what_is_carried(drawn):
    problem, origin, to, policies = drawn
    roomy = problem.model_copy(
        update={"supply": tuple(item.model_copy(update={"units": item.units + 1e4}) for item in problem.supply)}
    )
    planned = plan_transition(roomy, origin, to, policies)

    for name, policy in policies.items():
        if policy.refresh != "swap":
            assert max(least_beyond(roomy, planned, policies, name), default=0.0) <= 1e-6
