"""What of the store becomes the planner's problem."""

import pytest

from activities.planning.problem import fleet_left, fleet_problem, model_problem, with_running_options, within_fleet
from ipnext.errors import InvalidInput
from ipnext.model.deployment import Deployment, DeploymentKey
from ipnext.model.manifest import parse_manifest
from planner.io.problem import validate


@pytest.fixture
def fleet(house):
    with house.store.read() as repository:
        return repository.fleet().spec


@pytest.fixture
def model(kit):
    def build(**spec):
        return model_problem(parse_manifest(kit.manifest("ranker", **spec)))

    return build


def test_a_model_that_fits_stays_as_it_is(fleet, model):
    assert within_fleet(model(), fleet) == model()


def test_demand_that_no_region_reaches_any_more_is_left_out(fleet, model):
    slow = fleet.model_copy(update={"rtt_ms": ((1.0, 76.0), (120.0, 110.0))})
    fitting = within_fleet(model(), slow)
    assert [item.region for item in fitting.demand] == ["us-east"]
    validate(fleet_problem(slow, [fitting]))


@pytest.mark.parametrize(
    "spec",
    [
        {"latencyToleranceMs": 0},
        {"demand": [{"region": "us-east", "qps": 0}]},
        {"demand": [{"region": "mars", "qps": 5}, {"region": "us-east", "qps": 0}]},
    ],
    ids=["unreachable", "no demand", "no demand left"],
)
def test_a_model_that_the_planner_refuses_does_not_stop_the_plan_of_all_others(fleet, model, spec):
    with pytest.raises(InvalidInput, match=r"models\[0\]"):
        validate(fleet_problem(fleet, [model(**spec)]))
    assert within_fleet(model(**spec), fleet) is None


def test_what_runs_of_models_that_are_not_planned_is_no_supply(fleet):
    def deployed(model, replicas):
        key = DeploymentKey(model=model, part="dense", region="us-east", hardware="cpu")
        return Deployment(key=key, replicas=replicas, engine="torch", units=1.5, qps=100)

    running = (deployed("planned", 3), deployed("asleep", 4))
    assert fleet_left(fleet, running, {"planned", "asleep"}) == fleet
    left = fleet_left(fleet, running, {"planned"})
    assert [item.units for item in left.supply] == [34.0, 40.0]


def test_parts_and_hardware_that_only_run_are_known_beside_those_that_are_wished_for(model):
    def deployed(part, hardware):
        key = DeploymentKey(model="ranker", part=part, region="us-east", hardware=hardware)
        return Deployment(key=key, replicas=1, engine="torch", units=3, qps=7)

    running = (deployed("dense", "cpu"), deployed("dense", "gpu"), deployed("former", "gpu"), deployed("former", "cpu"))
    found = with_running_options(model(), running)
    options = {part.part: [(o.hardware, o.units, o.qps) for o in part.options] for part in found.parts}
    assert options == {
        "sparse": [("cpu", 1, 100)],
        "dense": [("cpu", 1, 100), ("gpu", 3, 7)],
        "former": [("gpu", 3, 7), ("cpu", 3, 7)],
    }
    assert {part.part: part.min_replicas for part in found.parts} == {"sparse": 1, "dense": 1, "former": 0}
