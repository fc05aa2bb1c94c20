"""What a transition costs, and what happens where the supply is short: circles, detours, dips, refusals."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipnext.model.planning.transition import FleetState, SurgeItem
from planner.transition.planner import StepPolicy, admit, check_transition
from tests.planner.moving import moving_fleets, policies

REPLACE = StepPolicy(refresh="replace")
DIP = StepPolicy(refresh="replace", when_short="dip", max_dip=0.3)


def standing(state, where, replicas=10, generation=1):
    """Each model of one part with all its traffic in one region."""
    counts = {f"{name}/p/{region}/h/{generation}": replicas for name, region in where.items()}
    return state(counts, {f"{name}/a/{region}/{generation}": 1.0 for name, region in where.items()})


def swap(problem, model, state, supply, **fields):
    """x and y change places; each needs ten units."""
    models = [model(name, {"a": 1000.0}, **fields) for name in ("x", "y")]
    regions = sorted({key.split("/")[0] for key in supply})
    stated = problem(*models, supply=supply, regions=regions)
    return stated, standing(state, {"x": "a", "y": "b"}), standing(state, {"x": "b", "y": "a"})


def admitted(stated, origin, to, policy=REPLACE):
    chosen = {model.model: policy for model in stated.models}
    transition, admission = admit(stated, origin, to, chosen)
    assert check_transition(stated, transition, chosen) == ()
    assert (transition.refused is None) == admission.feasible
    return transition, admission


def test_what_fits_within_both_states_goes_as_it_is(problem, model, state):
    stated = problem(model("x", {"a": 1000.0}), supply={"a/h": 10.0, "b/h": 10.0})
    _, admission = admitted(stated, standing(state, {"x": "a"}), standing(state, {"x": "b"}))
    assert (admission.mode, admission.surge, admission.dips) == ("as is", (), ())


def test_a_circle_is_resolved_by_the_smallest_surge_there_is_room_for(problem, model, state):
    transition, admission = admitted(*swap(problem, model, state, {"a/h": 11.0, "b/h": 10.0}))
    assert admission.mode == "surge"
    assert admission.surge == (SurgeItem(region="a", hardware="h", units=1.0),)
    moves = [{item.model for item in wave.scale_up} for wave in transition.waves]
    assert moves[:2] == [{"y"}, {"x"}], "one goes part of its way, then the other"


def test_a_circle_without_room_is_refused_with_who_waits_for_whom(problem, model, state):
    transition, admission = admitted(*swap(problem, model, state, {"a/h": 10.0, "b/h": 10.0}))
    assert transition.waves == ()
    assert admission.waits_for == ("x", "y")
    assert "x waits for y (1 units more of b/h), y waits for x (1 units more of a/h)" in admission.reason
    assert sum(item.units for item in admission.surge) == 1.0, "the surge of one replica would do"
    assert max(dip.fraction for dip in admission.dips) == pytest.approx(0.1), "or a dip of one replica"


def test_a_circle_is_resolved_through_a_third_region(problem, model, state):
    transition, admission = admitted(*swap(problem, model, state, {"a/h": 10.0, "b/h": 10.0, "c/h": 10.0}))
    assert admission.feasible
    assert {item.region for wave in transition.waves for item in wave.scale_up} == {"a", "b", "c"}


def test_a_third_region_beyond_the_tolerance_helps_nobody(problem, model, state):
    stated, origin, to = swap(problem, model, state, {"a/h": 10.0, "b/h": 10.0, "c/h": 10.0})
    far = stated.model_copy(update={"rtt_ms": ((1.0, 10.0, 500.0), (10.0, 1.0, 500.0), (500.0, 500.0, 1.0))})
    _, admission = admitted(far, origin, to)
    assert admission.mode == "refused"


def test_a_circle_is_resolved_through_other_hardware(problem, model, state):
    parts = {"p": {"h": (1.0, 100.0), "k": (1.0, 50.0)}}
    supply = {"a/h": 10.0, "b/h": 10.0, "a/k": 20.0, "b/k": 0.0}
    transition, admission = admitted(*swap(problem, model, state, supply, parts=parts))
    assert admission.feasible
    assert "k" in {item.hardware for wave in transition.waves for item in wave.scale_up}


def test_an_owner_who_allows_a_dip_gets_the_smallest_one(problem, model, state):
    transition, admission = admitted(*swap(problem, model, state, {"a/h": 10.0, "b/h": 10.0}), DIP)
    assert admission.mode == "dip"
    assert transition.dips == admission.dips
    assert len({dip.model for dip in transition.dips}) == 1, "one of the two is enough"
    assert max(dip.fraction for dip in transition.dips) == pytest.approx(0.1), "one replica of ten"


def test_a_dip_beyond_the_policy_is_refused(problem, model, state):
    small = DIP.model_copy(update={"max_dip": 0.05})
    _, admission = admitted(*swap(problem, model, state, {"a/h": 10.0, "b/h": 10.0}), small)
    assert admission.mode == "refused"


def test_no_dip_is_taken_where_an_order_needs_none(problem, model, state):
    transition, admission = admitted(*swap(problem, model, state, {"a/h": 11.0, "b/h": 10.0}), DIP)
    assert (admission.mode, transition.dips) == ("surge", ())


def test_waiting_names_what_must_be_freed(problem, model, state):
    wait = StepPolicy(refresh="replace", when_short="wait")
    _, admission = admitted(*swap(problem, model, state, {"a/h": 10.0, "b/h": 10.0}), wait)
    assert "waits until 1 units more of" in admission.reason


def test_a_circle_of_three_moves_with_one_spare_unit(problem, model, state):
    models = [model(name, {"a": 1000.0}) for name in ("x", "y", "z")]
    stated = problem(*models, supply={"a/h": 10.0, "b/h": 11.0, "c/h": 10.0}, regions=["a", "b", "c"])
    origin = standing(state, {"x": "a", "y": "b", "z": "c"})
    _, admission = admitted(stated, origin, standing(state, {"x": "b", "y": "c", "z": "a"}))
    assert admission.mode == "surge"


def test_what_is_held_above_the_traffic_gives_way_for_a_while(problem, model, state):
    stated = problem(model("x", {"a": 800.0}), model("y", {"a": 800.0}), supply={"a/h": 10.0, "b/h": 10.0})
    _, admission = admitted(stated, standing(state, {"x": "a", "y": "b"}), standing(state, {"x": "b", "y": "a"}))
    assert (admission.mode, admission.dips) == ("as is", ())


def test_a_model_moves_one_region_of_users_when_it_cannot_move_as_a_whole(problem, model, state):
    """y waits in b for what x frees in a, and x, as a whole, for what y frees in b."""
    demand = {"a": 100.0, "b": 100.0}
    stated = problem(model("x", demand), model("y", {"b": 100.0}), supply={"a/h": 1.0, "b/h": 1.0, "c/h": 1.0})
    stated = stated.model_copy(update={"regions": ("a", "b", "c"), "rtt_ms": ((1.0,) * 3,) * 3})
    origin = state({"x/p/a/h/1": 1, "x/p/c/h/1": 1, "y/p/b/h/1": 1}, {"x/a/a/1": 1.0, "x/b/c/1": 1.0, "y/b/b/1": 1.0})
    to = state({"x/p/b/h/1": 1, "x/p/c/h/1": 1, "y/p/a/h/1": 1}, {"x/a/c/1": 1.0, "x/b/b/1": 1.0, "y/b/a/1": 1.0})
    _, admission = admitted(stated, origin, to)
    assert admission.mode == "refused", "neither can: c holds one replica only"
    roomy = stated.model_copy(
        update={"supply": tuple(s.model_copy(update={"units": 2.0 if s.region == "c" else 1.0}) for s in stated.supply)}
    )
    _, admission = admitted(roomy, origin, to)
    assert admission.feasible


def mid_flight(state, a, b, generations=(1, 2)):
    """A rollout of one model of parts p and q that was stopped with these replicas and half of the traffic moved."""
    first, second = generations
    counts = {f"m/{part}/a/h/{first}": n for part, n in a.items()} | {
        f"m/{part}/a/h/{second}": n for part, n in b.items()
    }
    return state(counts, {f"m/a/a/{first}": 0.5, f"m/a/a/{second}": 0.5})


@pytest.mark.parametrize("refresh", ["replace", "in_place"])
@pytest.mark.parametrize("end", [1, 2, 3])
def test_a_rollout_that_is_stopped_goes_back_on_or_to_a_third(problem, model, state, refresh, end):
    parts = {"p": {"h": (1.0, 250.0)}, "q": {"h": (1.0, 100.0)}}
    stated = problem(model("m", {"a": 1000.0}, parts=parts), supply={"a/h": 17.0})
    half = {"p": 4, "q": 10} if refresh == "in_place" else {"p": 2, "q": 5}
    origin = mid_flight(state, half, half)
    to = state({f"m/p/a/h/{end}": 4, f"m/q/a/h/{end}": 10}, {f"m/a/a/{end}": 1.0})
    transition, _ = admitted(stated, origin, to, StepPolicy(canary=0.1, max_step=0.3, refresh=refresh))
    assert transition.refused is None
    assert transition.waves[0].gate == ("canary" if end == 3 else "step")


def test_a_model_that_leaves_makes_room_first(problem, model, state):
    stated = problem(model("old", {"a": 1000.0}), model("x", {"a": 1000.0}), supply={"a/h": 10.0})
    transition, admission = admitted(stated, standing(state, {"old": "a"}), standing(state, {"x": "a"}))
    assert admission.feasible
    assert [bool(wave.scale_up) for wave in transition.waves] == [False, True]


def test_a_target_that_breaks_a_rule_is_a_refusal_too(problem, model, state):
    stated = problem(model("x", {"a": 1000.0}), supply={"a/h": 9.0})
    _, admission = admitted(stated, FleetState(), standing(state, {"x": "a"}))
    assert (admission.mode, admission.surge) == ("refused", ())
    assert "the target breaks supply" in admission.reason


@given(fleet=moving_fleets())
@settings(max_examples=60, deadline=None)
def test_from_any_state_the_waves_keep_every_rule_or_are_refused_with_a_reason(fleet):
    stated, origin, to, chosen = fleet
    transition, admission = admit(stated, origin, to, chosen)
    assert check_transition(stated, transition, chosen) == ()
    assert "the waves would break" not in admission.reason
    assert (admission.mode == "dip") == bool(transition.dips)
    assert admission.feasible or "cannot move" in admission.reason or "target" in admission.reason


@given(fleet=moving_fleets(policies.map(lambda p: p.model_copy(update={"refresh": "replace"}))), data=st.data())
@settings(max_examples=25, deadline=None)
def test_a_transition_that_is_stopped_anywhere_can_go_back(fleet, data):
    """The state after a drawn wave is a valid origin of its own."""
    stated, origin, to, chosen = fleet
    transition, _ = admit(stated, origin, to, chosen)
    if transition.refused or not transition.waves:
        return
    roomy = stated.model_copy(
        update={"supply": tuple(s.model_copy(update={"units": 2 * s.units + 20.0}) for s in stated.supply)}
    )
    stop = data.draw(st.integers(1, len(transition.waves)))
    there = after(transition, stop)
    back, _ = admit(roomy, there, origin, chosen)
    assert "the waves would break" not in (back.refused or "")
    assert check_transition(roomy, back, chosen) == ()


def after(transition, stop):
    """The state after so many waves."""
    held = {(r.model, r.part, r.generation, r.region, r.hardware): r for r in transition.origin.replicas}
    sent = {(t.model, t.origin): [] for t in transition.origin.traffic}
    for share in transition.origin.traffic:
        sent[share.model, share.origin].append((share.to, share.generation, share.fraction))
    for wave in transition.waves[:stop]:
        for row in (*wave.scale_up, *wave.scale_down):
            held[row.model, row.part, row.generation, row.region, row.hardware] = row
        for change in wave.route:
            sent[change.model, change.origin] = [(s.to, s.generation, s.fraction) for s in change.shares]
    traffic = [
        {"model": m, "from": s, "to": r, "generation": g, "fraction": f}
        for (m, s), shares in sent.items()
        for r, g, f in shares
    ]
    return FleetState.model_validate({"replicas": [r.model_dump() for r in held.values()], "traffic": traffic})
