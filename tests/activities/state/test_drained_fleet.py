"""What drains mean for the planner: supply that counts as nothing, wishes that wait."""

from datetime import UTC, datetime

import pytest

from activities.regions.drain_check import refusal_of
from activities.state.drained_fleet import NOTHING, DrainedFleet, relax_model, without_drained
from ipnext.model.fleet import FleetSpec, SupplyItem
from ipnext.model.lifecycle.regions.drain import Drain, DrainState
from ipnext.model.lifecycle.status import Reason
from ipnext.model.planning.plan import ModelProblem, PartOption, PartProblem, Plan, RegionDemand, SolverInfo, Unmet

NOW = datetime(2026, 3, 29, tzinfo=UTC)

FLEET = FleetSpec(
    regions=("a", "b", "c"),
    rtt_ms=((1, 50, 200), (50, 1, 150), (200, 150, 1)),
    hardware=("cpu", "gpu"),
    supply=(
        SupplyItem(region="a", hardware="cpu", units=10, unit_cost=1),
        SupplyItem(region="b", hardware="cpu", units=10, unit_cost=2),
        SupplyItem(region="c", hardware="cpu", units=10, unit_cost=3),
        SupplyItem(region="b", hardware="gpu", units=4, unit_cost=9),
    ),
)


def model(*, tolerance=60.0, survive="none", hardware="cpu", demand=(("a", 10.0), ("b", 5.0))):
    part = PartProblem(part="p", min_replicas=1, options=(PartOption(hardware=hardware, units=1, qps=10),))
    return ModelProblem(
        model="m",
        owner="o",
        priority=1.0,
        latency_tolerance_ms=tolerance,
        survive=survive,
        demand=tuple(RegionDemand(region=region, qps=qps) for region, qps in demand),
        parts=(part,),
    )


def drain(region, state, **more):
    return Drain(id=f"d-{region}", region=region, state=state, created_at=NOW, updated_at=NOW, **more)


@pytest.mark.parametrize(
    ("state", "disaster", "holds"),
    [
        (DrainState.RECORDED, False, False),
        (DrainState.CHECKING, False, False),
        (DrainState.DRAINING, False, True),
        (DrainState.DRAINED, False, True),
        (DrainState.REFUSED, False, False),
        (DrainState.RETURNING, False, True),
        (DrainState.RETURNED, False, False),
        (DrainState.RECORDED, True, True),
        (DrainState.RETURNING, True, True),
        (DrainState.RETURNED, True, False),
    ],
)
def test_supply_counts_as_nothing_from_the_check_on_and_of_a_lost_region_from_the_record_on(state, disaster, holds):
    found = DrainedFleet.of([drain("a", state, disaster=disaster)])
    assert found.regions == ({"a"} if holds else frozenset())
    assert found.lost == ({"a"} if holds and disaster else frozenset())


def test_supply_goes_and_users_and_prices_stay():
    found = without_drained(FLEET, NOTHING.and_region("b"))
    assert {(i.region, i.hardware): i.units for i in found.supply if i.region == "b"} == {
        ("b", "cpu"): 0,
        ("b", "gpu"): 0,
    }
    assert [i.unit_cost for i in found.supply] == [i.unit_cost for i in FLEET.supply]
    assert (found.regions, found.rtt_ms) == (FLEET.regions, FLEET.rtt_ms)
    assert without_drained(FLEET, NOTHING) is FLEET


def test_a_planned_drain_eases_no_wish():
    wished = model(tolerance=10, survive="region")
    assert relax_model(wished, FLEET, NOTHING.and_region("a")) == wished


def test_survival_waits_while_a_region_is_lost_or_drained_by_force():
    wished = model(survive="region", tolerance=300)
    assert (
        relax_model(wished, FLEET, DrainedFleet.of([drain("a", DrainState.DRAINING, disaster=True)])).survive == "none"
    )
    assert relax_model(wished, FLEET, NOTHING.and_region("a", force=True)).survive == "none"


def test_the_tolerance_gives_way_as_far_as_the_nearest_region_left_needs():
    lost = DrainedFleet.of([drain("a", DrainState.DRAINING, disaster=True)])
    assert relax_model(model(tolerance=20), FLEET, lost).latency_tolerance_ms == 50
    assert relax_model(model(tolerance=60), FLEET, lost).latency_tolerance_ms == 60, "b is near enough"
    both = DrainedFleet.of([drain(region, DrainState.DRAINING, disaster=True) for region in ("a", "b")])
    assert relax_model(model(tolerance=60), FLEET, both).latency_tolerance_ms == 200


def test_users_that_no_region_reached_before_do_not_stretch_the_tolerance():
    wished = model(tolerance=20, demand=(("a", 10.0), ("c", 5.0)), hardware="gpu")
    lost = DrainedFleet.of([drain("a", DrainState.DRAINING, disaster=True)])
    assert relax_model(wished, FLEET, lost).latency_tolerance_ms == 20, "a has no gpu: nothing was lost"


def plan(*unmet):
    solver = SolverInfo(method="m", seconds=0, iterations=0)
    return Plan(
        status="optimal",
        objective=0,
        replicas=(),
        traffic=(),
        bound=0,
        gap=0,
        bound_covers="",
        cost_per_hour=0,
        unmet=unmet,
        solver=solver,
    )


def unmet(name, qps, *rules):
    return Unmet(model=name, region="a", qps=qps, rules=rules)


def test_a_refusal_names_models_requests_and_rules_the_worst_first():
    found = refusal_of(plan(unmet("small", 1, "supply b/cpu"), unmet("large", 7.5, "supply b/cpu", "latency")), ())
    assert found is not None
    reason, message = found
    assert reason is Reason.NO_CAPACITY
    assert message.index("large: 7.5 requests/s of a (supply b/cpu, latency)") < message.index("small: 1 requests/s")


def test_what_is_unserved_already_refuses_nothing_and_only_the_rest_counts():
    before = [unmet("m", 5)]
    assert refusal_of(plan(unmet("m", 5, "supply b/cpu")), before) is None
    found = refusal_of(plan(unmet("m", 8, "budget owner o")), before)
    assert found is not None
    assert found[0] is Reason.OVER_BUDGET
    assert "m: 3 requests/s of a" in found[1]


def test_of_many_models_three_are_named_and_the_others_counted():
    found = refusal_of(plan(*(unmet(f"m{i}", i + 1.0, "supply b/cpu") for i in range(9))), ())
    assert found is not None
    assert "m8" in found[1]
    assert "m5" not in found[1]
    assert "and 6 more" in found[1]
