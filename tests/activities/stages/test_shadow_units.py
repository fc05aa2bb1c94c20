"""Units that shadows take, with several models in one store."""

import pytest

from activities.stages.shadow_budgets import find_spent
from activities.stages.shadow_units import announced_units, find_needed
from activities.state.desired import read_facts
from ipnext.model.deployment.deployment import AssignedSnapshot, Deployment, DeploymentKey
from ipnext.model.deployment.route_table import Shadow
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.lifecycle.shadow import ModelShadow, ShadowSeen, ShadowSettings
from ipnext.model.registry.registry import PartGraph
from tests.fleets import two_regions

GRAPH = PartGraph.model_validate({"nodes": [{"name": "a", "part": "sparse", "inputs": {}}], "outputs": {"y": "a.y"}})


@pytest.fixture
def keep(house):
    """Keep a shadow of one process besides some replicas of its model, which no plan knows."""

    def put(model, *, replicas=0, is_stored=True, state="comparing"):
        house.bring(model)
        key = DeploymentKey(model=model, part="sparse", region="us-east", hardware="cpu")
        held = (AssignedSnapshot(snapshot=1, digest="d", uri="file:///d", generations=(2,)),)
        alone = Deployment(key=key, engine="torch", replicas=1, units=1, qps=100, holds=held, shadow={2: 1})
        served = ServedGeneration(generation=2, graph=GRAPH, snapshots={"sparse": 1})
        shadow = ModelShadow(
            model=model,
            change_id=f"{model}-c",
            shadow=Shadow(served=served, share=0.5),
            regions=("us-east",),
            sets=(alone,),
            settings=ShadowSettings(),
        )
        with house.store.begin(model) as repository:
            if is_stored:
                repository.put_deployment(alone.model_copy(update={"replicas": replicas + 1}))
            repository.put_shadow(shadow, ShadowSeen(state=state))

    return put


@pytest.fixture
def needed(house):
    def find(model):
        with house.store.read() as repository:
            return find_needed(repository, repository.stored_shadow(model))

    return find


def test_a_shadow_keeps_what_the_supply_has(house, keep, needed):
    house.apply_fleet(two_regions(3, 0))
    keep("m", replicas=2)
    assert needed("m") is None
    house.apply_fleet(two_regions(2, 0))
    assert needed("m") == "1 units of us-east/cpu"


@pytest.mark.parametrize("disaster", [True, False])
def test_a_region_out_of_service_ends_no_shadow(house, keep, needed, disaster):
    """Its replica sets there are stored until the drain has removed them, and the supply is none by then."""
    house.apply_fleet(two_regions(3, 0))
    keep("m", replicas=2)
    with house.store.begin() as repository:
        repository.add_drain("us-east", disaster=disaster)
    assert needed("m") is None


def test_only_as_many_shadows_give_units_back_as_are_lacking_the_newest_first(house, keep, needed):
    for model in ("c", "a", "b"):
        keep(model)
    house.apply_fleet(two_regions(1, 0))
    assert [needed(model) for model in ("c", "a", "b")] == [None, "1 units of us-east/cpu", "2 units of us-east/cpu"]


def test_a_shadow_that_is_planned_counts_until_its_replica_sets_are_stored(house, keep):
    keep("planned", is_stored=False, state="planned")
    keep("stored", state="planned")
    keep("lost", is_stored=False)
    with house.store.read() as repository:
        assert announced_units(repository, but="m") == {("us-east", "cpu"): 1.0}
        assert announced_units(repository, but="planned") == {}


def test_an_owners_budget_ends_its_newest_shadows_first(house, keep):
    for model in ("c", "a", "b"):
        keep(model)
    cost = 0.05  # of a unit

    def spent(model):
        with house.store.read() as repository:
            kept = repository.stored_shadow(model)
            return find_spent(repository, read_facts(repository, model, 2), kept)

    house.apply_fleet(
        two_regions(9, 0, east_cost=cost) + f"  owners: [{{owner: default, budgetPerHour: {2 * cost}}}]\n"
    )
    assert [spent(model) for model in ("c", "a")] == [None, None]
    assert spent("b") == "the budget of owner 'default' is 0.1 $/h, of which 0.1 are spent"
    house.apply_fleet(two_regions(9, 0, east_cost=cost) + "  owners: [{owner: another, budgetPerHour: 0}]\n")
    assert spent("b") is None
