"""How much demand a state carries."""

import pytest

from activities.state.routes.failover_shares import Nearness
from activities.transition.rollback_target import on_what_is_left, within_reach
from ipnext.model.planning.plan import ModelProblem, PartOption, PartProblem, RegionDemand
from ipnext.model.planning.transition import FleetState, GenerationReplicas, GenerationShare


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


def in_two_regions(west_a=2, west_b=1, to_west=0.25):
    rows = [("a", "east", 2), ("b", "east", 2), ("a", "west", west_a), ("b", "west", west_b)]
    replicas = tuple(
        GenerationReplicas(model="m", part=part, generation=1, region=region, hardware="cpu", count=count)
        for part, region, count in rows
        if count
    )
    share = {"model": "m", "from": "east", "generation": 1}
    traffic = tuple(
        GenerationShare.model_validate(share | {"to": to, "fraction": fraction})
        for to, fraction in (("east", 1.0 - to_west), ("west", to_west))
    )
    return FleetState(replicas=replicas, traffic=traffic)


def test_what_is_left_gets_the_traffic_of_a_lost_region_and_nothing_is_placed_there():
    left = on_what_is_left(model(400.0), in_two_regions(), {"east"}, Nearness())

    assert {row.region for row in left.replicas} == {"west"}
    assert [(row.origin, row.to, row.fraction) for row in left.traffic] == [("east", "west", 1.0)]
    assert within_reach(model(400.0), left).demand[0].qps == pytest.approx(100.0), "the weakest part that is left"


def test_a_region_that_lacks_a_part_answers_nothing_and_without_a_loss_all_stays():
    without = on_what_is_left(model(400.0), in_two_regions(west_b=0, to_west=0.0), {"east"}, Nearness())
    assert without.traffic == ()
    assert on_what_is_left(model(400.0), in_two_regions(), set(), Nearness()) == in_two_regions()
