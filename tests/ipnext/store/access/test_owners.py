"""Owners and the claims of their models, on both engines; and whose demand a replan serves."""

from concurrent.futures import ThreadPoolExecutor
from threading import Barrier

import pytest
from temporalio.testing import ActivityEnvironment

from activities.planning.activities import PlanningActivities
from activities.planning.policy import PlanningPolicy
from activities.planning.replan import FleetReplan
from activities.planning.solver import ThreadSolver
from ipnext.api.routes.models.owners import admit
from ipnext.errors import Conflict, NotFound, QuotaExceeded, StaleWrite
from ipnext.model.access.owner import OwnerManifest
from ipnext.model.fleet import FleetSpec, SupplyItem
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.manifest.parser import parse_manifest
from tests.ipnext.store.test_writers import waits_for_a_lock
from tests.waiting import PATIENCE_SECONDS, until


def owner(name="search", **spec) -> OwnerManifest:
    document = {"apiVersion": "ipnext/v1", "kind": "Owner", "metadata": {"name": name}, "spec": spec}
    return OwnerManifest.model_validate(document)


def model(name, *, owner="search", qps=100.0, per_replica=100.0, **spec) -> ModelManifest:
    hardware = [{"kind": "cpu", "units": 1, "qps": per_replica}]
    found = {"parts": [{"name": "p", "hardware": hardware}], "demand": [{"region": "north", "qps": qps}], **spec}
    document = {"apiVersion": "ipnext/v1", "kind": "Model", "metadata": {"name": name, "owner": owner}, "spec": found}
    manifest = parse_manifest(document)
    assert isinstance(manifest, ModelManifest)
    return manifest


def fleet(units: float) -> FleetSpec:
    supply = (SupplyItem(region="north", hardware="cpu", units=units, unit_cost=1),)
    return FleetSpec(regions=("north",), rtt_ms=((1,),), hardware=("cpu",), supply=supply)


def apply(unit, manifest):
    claims = admit(unit, manifest, replicas=1000, models=1000, callers=1000)
    unit.put_model(manifest, expected_version=None)
    unit.claim(manifest.name, claims)


@pytest.fixture
def search(store):
    """A store with a fleet and the owner `search`."""
    with store.begin() as unit:
        unit.put_fleet(fleet(100), expected_version=None)
        unit.put_owner(owner(quotas={"models": 3, "units": {"cpu": 4}}), expected_version=None)
    return store


def test_an_owner_is_kept_with_a_version_and_an_equal_one_stays(search):
    with search.begin() as unit:
        assert unit.put_owner(owner(quotas={"models": 3, "units": {"cpu": 4}}), expected_version=1).version == 1
        assert unit.put_owner(owner(priority=7), expected_version=1).version == 2
        assert unit.owner("search").manifest == owner(priority=7)
        assert unit.owner_priorities() == {"search": 7}
        with pytest.raises(StaleWrite):
            unit.put_owner(owner(), expected_version=1)
        with pytest.raises(NotFound, match="known: search"):
            unit.owner("ads")


def test_what_models_count_for_is_summed_up_without_retired_ones(search):
    with search.begin() as unit:
        apply(unit, model("one", qps=150.0, budgetPerHour=5))
        apply(unit, model("two"))
        apply(unit, model("other", owner="ads"))
    with search.begin() as unit:
        assert unit.sum_claims("search", but="two") == {
            "models": 1, "units.cpu": 2, "requestsPerSecond": 150, "dollarsPerHour": 5, "replicas": 2,
        }  # fmt: skip
        uses = unit.owner_uses(("search", "nobody"))
        assert uses["search"].claimed["models"] == 2
        assert uses["search"].without_budget == 1
        assert uses["nobody"].claimed == {"models": 0}
        unit.update_model("one", retired=True)
        assert unit.sum_claims("search", but="") == {
            "models": 1,
            "units.cpu": 1,
            "requestsPerSecond": 100,
            "replicas": 1,
        }


def test_a_model_that_is_given_to_another_owner_counts_there(search):
    with search.begin() as unit:
        apply(unit, model("one", owner="ads", qps=300.0))
        apply(unit, model("two", qps=200.0))
        with pytest.raises(QuotaExceeded, match="3 units of cpu; owner 'search' uses 2 of 4"):
            apply(unit, model("one", qps=300.0))
        apply(unit, model("one", qps=200.0))
        assert unit.sum_claims("ads", but="") == {"models": 0}
        assert unit.sum_claims("search", but="")["units.cpu"] == 4


def test_an_owner_with_models_is_not_deleted(search):
    with search.begin() as unit:
        apply(unit, model("one"))
        with pytest.raises(Conflict, match="still has models: one;"):
            unit.delete_owner("search", expected_version=None)
        unit.update_model("one", retired=True)
        with pytest.raises(Conflict, match=r"still has models: one \(retired\); give them another owner first"):
            unit.delete_owner("search", expected_version=None)
        apply(unit, model("one", owner="ads"))
        unit.delete_owner("search", expected_version=1)
        assert unit.find_owner("search") is None


def test_models_that_are_applied_at_the_same_time_are_counted_one_after_the_other(search):
    """Six units begin before any has read a claim; three find room for a model, four units are all there are."""
    begun = Barrier(6)

    def ask(number):
        name = f"m{number}"
        begun.wait(PATIENCE_SECONDS)
        try:
            with search.begin(name) as unit:
                apply(unit, model(name))
        except QuotaExceeded as error:
            return error.message
        return None

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, range(6)))
    assert len([answer for answer in answers if answer is None]) == 3
    assert all("uses 3 of 3 models" in answer for answer in answers if answer)
    with search.read() as unit:
        assert unit.sum_claims("search", but="")["models"] == 3


@pytest.mark.postgres
@pytest.mark.parametrize("engine_name", ["postgres"])
def test_an_open_unit_holds_up_the_next_one_of_its_owner_and_none_of_another(search):
    """By order: the second unit of the owner sees what the first one wrote, though it began while that was open."""
    with ThreadPoolExecutor(1) as pool:
        with search.begin("one") as unit:
            apply(unit, model("one", qps=300.0))
            with search.begin("other") as beside:
                apply(beside, model("other", owner="ads"))

            def second():
                with search.begin("two") as later:
                    apply(later, model("two", qps=200.0))

            waiting = pool.submit(second)
            until(lambda: waiting.done() or waits_for_a_lock(search))
        with pytest.raises(QuotaExceeded, match="uses 3 of 4 units of cpu"):
            waiting.result(PATIENCE_SECONDS)


def place(store, name):
    stage = StageInput(model=name, change_id=f"{name}-1", kind=ChangeKind.PUBLISH, generation=1)
    return ActivityEnvironment().run(PlanningActivities(store, ThreadSolver()).place_model, stage)


@pytest.mark.parametrize("ranks", [{"search": 0, "ads": 0}, {"search": 5, "ads": 0}, {"search": 5, "ads": 9}])
def test_if_supply_is_lost_a_replan_keeps_the_answers_of_the_owner_with_the_higher_priority(store, make, ranks):
    """`dear` of search needs ten units for 100 requests/s; `cheap` of ads answers 1,000 with as many."""
    models = (model("dear", per_replica=10.0), model("cheap", owner="ads", qps=1000.0))
    with store.begin() as unit:
        unit.put_fleet(fleet(20), expected_version=None)
        for name, priority in ranks.items():
            unit.put_owner(owner(name, priority=priority), expected_version=None)
        for manifest in models:
            apply(unit, manifest)
            unit.publish(manifest.name, {"p": make.source(manifest.name)}, change_id=f"{manifest.name}-1")
    for manifest in models:
        assert place(store, manifest.name).feasible
    with store.begin() as unit:
        unit.put_fleet(fleet(10), expected_version=None)
        unit.add_replan("asked", "manual")
    answer = FleetReplan(store, ThreadSolver(), PlanningPolicy(), say=lambda _: None).compute("fleet-plan", run_id="r")
    assert answer.adopted, answer.message
    served = "dear" if ranks["search"] > ranks["ads"] else "cheap"
    with store.read() as unit:
        assert {placed.model for placed in unit.placements() if placed.replicas} == {served}
