"""How much demand a state carries."""

import pytest

from activities.carried import within_reach
from ipnext.model.plan import ModelProblem, PartOption, PartProblem, RegionDemand
from ipnext.model.rollout import FleetState, GenerationReplicas, GenerationShare


def model(qps):
    parts = tuple(
        PartProblem(part=part, min_replicas=1, options=(PartOption(hardware="cpu", units=1, qps=100),)) for part in "ab"
    )
    return ModelProblem(
        model="m", owner="o", latency_tolerance_ms=50, demand=(RegionDemand(region="east", qps=qps),), parts=parts
    )


def state(a, b):
    rows = tuple(
        GenerationReplicas(model="m", part=part, generation=1, region="east", hardware="cpu", count=count)
        for part, count in (("a", a), ("b", b))
    )
    share = GenerationShare.model_validate({"model": "m", "from": "east", "to": "east", "generation": 1, "fraction": 1})
    return FleetState(replicas=rows, traffic=(share,))


def test_demand_that_is_carried_stays():
    assert within_reach(model(200.0), state(2, 3)) == model(200.0)


def test_more_demand_is_scaled_to_what_the_weakest_part_carries():
    assert within_reach(model(400.0), state(2, 3)).demand[0].qps == pytest.approx(200.0)


def test_a_state_that_carries_nothing_is_left_to_be_refused():
    assert within_reach(model(400.0), state(2, 0)) == model(400.0)
    assert within_reach(model(400.0), FleetState()) == model(400.0)
