"""What of the store becomes the planner's problem."""

from types import SimpleNamespace

import pytest

from activities.planning import problem
from activities.planning.problem import (
    fleet_left,
    fleet_problem,
    model_problem,
    planned_models,
    with_running_options,
    within_fleet,
)
from ipnext.errors import InvalidInput
from ipnext.model.deployment.deployment import Deployment, DeploymentKey
from ipnext.model.manifest.parser import parse_manifest
from ipnext.model.manifest.part import MOST_REPLICAS
from ipnext.model.planning.plan import ReplicaCount
from ipnext.model.value import LARGEST_FIGURE, SMALLEST_RATE, SMALLEST_UNITS
from ipnext.store.records import ModelPlacement
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


def placed_by(wishes):
    row = ReplicaCount(model=wishes.model, part=wishes.parts[0].part, region="us-east", hardware="cpu", count=1)
    return ModelPlacement(model=wishes.model, plan_id="plan-1", wishes=wishes, replicas=(row,))


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


def test_the_largest_and_the_smallest_figures_of_a_manifest_are_taken_by_the_planner(fleet, model):
    """A manifest that is taken never stops the plan of all others."""
    for figure in (LARGEST_FIGURE, SMALLEST_RATE):
        hardware = [{"kind": "cpu", "units": min(figure, 1e6) if figure > 1 else SMALLEST_UNITS, "qps": figure}]
        extreme = model(
            parts=[{"name": "sparse", "hardware": hardware, "minReplicas": MOST_REPLICAS}],
            graph=None,
            demand=[{"region": "us-east", "qps": figure}],
            priority=figure,
            budgetPerHour=figure,
            latencyToleranceMs=LARGEST_FIGURE,
        )
        validate(fleet_problem(fleet, [within_fleet(extreme, fleet)]))


def test_parts_that_nothing_was_placed_with_take_no_capacity(fleet, model, kit):
    """A manifest with a part that no generation has is refused; its demand must not push others out."""
    before = model()
    ghost = kit.manifest("ranker", demand=[{"region": "us-east", "qps": 4000}])
    ghost["spec"]["parts"][0]["name"] = "ghost"
    ghost["spec"]["graph"] = None
    ghost["spec"]["parts"] = ghost["spec"]["parts"][:1]
    grown = kit.manifest("ranker", demand=[{"region": "us-east", "qps": 4000}])
    for document, expected in ((ghost, before), (grown, model_problem(parse_manifest(grown)))):
        record = SimpleNamespace(
            name="ranker",
            in_force=parse_manifest(document),
            retired=False,
            serving_generation=1,
            refused_generation=None,
            former=None,
        )
        placed = placed_by(before)
        assert planned_models(fleet, [record], {"ranker": placed}) == [within_fleet(expected, fleet)]


def test_a_manifest_that_a_validation_refused_changes_nothing_that_is_planned(fleet, model, kit):
    before = model()
    grown = parse_manifest(kit.manifest("ranker", demand=[{"region": "us-east", "qps": 4000}]))
    record = SimpleNamespace(
        name="ranker",
        in_force=grown,
        retired=False,
        serving_generation=1,
        refused_generation=2,
        generation=3,
        former=None,
    )
    placed = placed_by(before)
    assert planned_models(fleet, [record], {"ranker": placed}) == [before]
    record.refused_generation = None
    assert planned_models(fleet, [record], {"ranker": placed}) == [within_fleet(model_problem(grown), fleet)]


def test_a_model_whose_throughput_is_unknown_stops_no_plan_and_is_named(fleet, kit, monkeypatch):
    def unmeasured(manifest):
        if manifest.name == "unknown":
            msg = "its throughput was never measured"
            raise InvalidInput(msg)
        return model_problem(manifest)

    monkeypatch.setattr(problem, "model_problem", unmeasured)
    manifests = [parse_manifest(kit.manifest(name)) for name in ("known", "unknown")]
    own = {"retired": False, "serving_generation": 1, "refused_generation": None, "former": None}
    records = [SimpleNamespace(name=each.name, in_force=each, **own) for each in manifests]
    left_out = {}

    planned = planned_models(fleet, records, {}, left_out=left_out)

    assert [found.model for found in planned] == ["known"]
    assert left_out == {"unknown": "its throughput was never measured"}
    former = model_problem(manifests[1])
    placed = placed_by(former)
    assert planned_models(fleet, records[1:], {"unknown": placed}) == [within_fleet(former, fleet)]


def test_a_model_with_an_adapter_is_planned_as_its_newest_manifest_wishes(fleet):
    """An adapter has no processes of its own, so a placement does not name it."""
    hardware = [{"kind": "cpu", "units": 1, "qps": 100}]
    parts = [
        {"name": "llm", "engine": "vllm", "hardware": hardware},
        {"name": "style", "engine": "vllm", "adapterOf": "llm"},
    ]

    def manifest(qps):
        spec = {"task": "generation", "parts": parts, "demand": [{"region": "us-east", "qps": qps}]}
        document = {
            "apiVersion": "ipnext/v1",
            "kind": "Model",
            "metadata": {"name": "chat", "owner": "a"},
            "spec": spec,
        }
        return parse_manifest(document)

    record = SimpleNamespace(
        name="chat", in_force=manifest(90), retired=False, serving_generation=1, refused_generation=None, former=None
    )
    placed = placed_by(model_problem(manifest(10)))
    (planned,) = planned_models(fleet, [record], {"chat": placed})
    assert [item.qps for item in planned.demand] == [90]


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
