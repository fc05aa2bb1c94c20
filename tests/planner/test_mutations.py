"""Each rule of the planner and of its result is broken on purpose; the checker names exactly that rule."""

from itertools import pairwise

import numpy as np
import pytest

from ipnext.model.planning.transition import Dip, RouteChange, Share
from planner.transition.paths import LinearPaths
from planner.transition.planner import StepPolicy, check_transition, plan_transition, plan_unchecked
from planner.transition.searches.trim import measure_dips
from planner.transition.trajectory import Trajectory
from planner.transition.wave_scheduler import STEP_FRACTIONS, _WavePacker

POLICY = StepPolicy(canary=0.1, max_step=0.4, refresh="replace")


@pytest.fixture
def rollout(problem, model, state):
    """A problem of [4, 10] replicas with room for ten more, both generations' states, and the policy."""
    parts = {"p0": {"h": (1.0, 250.0)}, "p1": {"h": (1.0, 100.0)}}
    stated = problem(model("m", {"a": 1000.0}, parts=parts), supply={"a/h": 24.0})
    states = [state({f"m/p0/a/h/{g}": 4, f"m/p1/a/h/{g}": 10}, {f"m/a/a/{g}": 1.0}) for g in (1, 2)]
    return stated, *states, {"m": POLICY}


def planned(case):
    """What the planner makes of it, unchecked."""
    transition = plan_unchecked(*case)[0]
    assert transition.refused is None
    return transition


def rules(case, transition):
    stated, _, _, policies = case
    return {violation.rule for violation in check_transition(stated, transition, policies)}


def test_unbroken_all_is_well(rollout):
    assert rules(rollout, planned(rollout)) == set()


def rounded_down(self, x):
    """Floor instead of ceil."""
    at = x[self.model]
    line = np.floor(self.old + at * (self.new - self.old)).astype(np.int64)
    return np.where(at >= 1.0, self.new, line)


SHARES = LinearPaths.shares


def lost(self, m, x):
    """A tenth of the traffic goes missing on the way."""
    return {flow: share * (0.9 if x < 1.0 else 1.0) for flow, share in SHARES(self, m, x).items()}


@pytest.mark.parametrize(
    ("where", "what", "broken", "rule"),
    [
        (LinearPaths, "counts", rounded_down, "capacity"),
        (LinearPaths, "_step_limit", lambda self, x: np.where(x <= 0.0, self.first_step, 0.5), "max_step"),
        (LinearPaths, "shares", lost, "served"),
        (
            Trajectory,
            "units_by_wave",
            lambda self: [self.used_units() * 0 for schedule in self.schedules for _ in schedule.positions[1:]],
            "surge",
        ),
    ],
    ids=["floor instead of ceil", "a step beyond max_step", "a tenth of the traffic lost", "the surge not counted"],
)
def test_a_broken_rule_of_the_planner_is_named(rollout, monkeypatch, where, what, broken, rule):
    monkeypatch.setattr(where, what, broken)
    assert rules(rollout, planned(rollout)) == {rule}


def test_a_canary_that_is_too_large_is_named(rollout, monkeypatch):
    monkeypatch.setattr(LinearPaths, "_step_limit", lambda self, *_: self.max_step)
    assert rules(rollout, planned(rollout)) == {"canary"}


def test_supply_overbooked_by_one_unit_is_named(rollout, monkeypatch):
    stated, *rest = rollout
    need = planned(rollout).surge[0].units
    tight = stated.model_copy(update={"supply": (stated.supply[0].model_copy(update={"units": 14 + need - 1}),)})
    monkeypatch.setattr(_WavePacker, "_fill", lambda self, *_: self.paths.next_points(self.x, STEP_FRACTIONS[0]))
    assert rules((tight, *rest), planned((tight, *rest))) == {"supply"}


def test_a_planner_that_breaks_a_rule_lets_nothing_out(rollout, monkeypatch):
    monkeypatch.setattr(LinearPaths, "counts", rounded_down)
    refused = plan_transition(*rollout)
    assert refused.waves == ()
    assert "the waves would break capacity" in refused.refused


def changed(transition, number, **fields):
    """One wave changed."""
    waves = list(transition.waves)
    waves[number] = waves[number].model_copy(update=fields)
    return transition.model_copy(update={"waves": tuple(waves)})


def test_a_release_before_its_route_is_named(rollout):
    whole = planned(rollout)
    waves = list(whole.waves)
    for number, (first, second) in enumerate(pairwise(whole.waves)):
        waves[number] = first.model_copy(update={"scale_down": second.scale_down})
    early = whole.model_copy(update={"waves": tuple(waves)})
    assert rules(rollout, early) == {"capacity"}


def test_a_route_before_its_scale_up_is_named(rollout):
    whole = planned(rollout)
    late = changed(whole, 1, scale_up=())
    late = changed(late, 2, scale_up=whole.waves[1].scale_up[:0] + whole.waves[2].scale_up)
    assert rules(rollout, late) == {"capacity"}


def test_an_end_one_replica_short_or_over_is_named(rollout):
    whole = planned(rollout)
    last = whole.waves[-1]
    kept = [*last.scale_down[:-1], last.scale_down[-1].model_copy(update={"count": 1})]
    assert rules(rollout, changed(whole, -1, scale_down=tuple(kept))) == {"end"}
    row = last.scale_up[-1]
    assert "end" in rules(
        rollout, changed(whole, -1, scale_up=(*last.scale_up[:-1], row.model_copy(update={"count": row.count - 1})))
    )


def test_a_region_that_is_too_far_is_named(rollout):
    stated, origin, to, policies = rollout
    near = stated.model_copy(update={"models": (stated.models[0].model_copy(update={"latency_tolerance_ms": 5.0}),)})
    whole = planned(rollout)
    shares = (Share(to="a", generation=1, fraction=0.9), Share(to="b", generation=1, fraction=0.1))
    far = changed(whole, 0, route=(RouteChange.model_validate({"model": "m", "from": "a", "shares": shares}),))
    assert "latency" in rules((near, origin, to, policies), far)
    assert "latency" not in rules(rollout, far)


@pytest.fixture
def dipping(problem, model, state):
    """The same replacement without room, by an owner who allows a dip of a fifth."""
    stated = problem(model("m", {"a": 1000.0}), supply={"a/h": 10.0})
    states = [state({f"m/p/a/h/{g}": 10}, {f"m/a/a/{g}": 1.0}) for g in (1, 2)]
    return stated, *states, {"m": POLICY.model_copy(update={"when_short": "dip", "max_dip": 0.2})}


def test_a_dip_within_the_policy_is_no_violation(dipping):
    whole = planned(dipping)
    assert [dip.fraction for dip in whole.dips] == pytest.approx([0.1])
    assert rules(dipping, whole) == set()


def test_a_dip_that_is_not_stated_or_understated_is_named(dipping, monkeypatch):
    whole = planned(dipping)
    assert rules(dipping, whole.model_copy(update={"dips": ()})) == {"capacity"}
    less = Dip(model="m", part="p", region="a", fraction=0.09)
    assert rules(dipping, whole.model_copy(update={"dips": (less,)})) == {"capacity"}
    monkeypatch.setattr(
        "planner.transition.searches.dip_search.measure_dips",
        lambda *args: {k: v / 2 for k, v in measure_dips(*args).items()},
    )
    assert rules(dipping, planned(dipping)) == {"capacity"}


@pytest.mark.parametrize("fields", [{"max_dip": 0.05}, {"when_short": "surge"}])
def test_a_dip_beyond_the_policy_is_named(dipping, fields):
    stated, origin, to, policies = dipping
    strict = {"m": policies["m"].model_copy(update=fields)}
    assert rules((stated, origin, to, strict), planned(dipping)) == {"dip"}


def test_a_share_of_another_generation_than_stated_is_named(rollout):
    whole = planned(rollout)
    route = whole.waves[-1].route[0]
    wrong = route.model_copy(update={"shares": (route.shares[0].model_copy(update={"generation": 3}),)})
    assert {"capacity", "end"} <= rules(rollout, changed(whole, -1, route=(wrong,)))
