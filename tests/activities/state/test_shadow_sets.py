"""Replica sets with and without the processes of a shadow."""

from activities.state.shadow_sets import with_shadow, without_shadow
from ipnext.model.deployment.deployment import AssignedSnapshot, Deployment, DeploymentKey
from ipnext.model.deployment.route_table import RouteShare, RouteTable, Shadow
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.lifecycle.shadow import ModelShadow, ShadowSettings
from ipnext.model.registry.registry import PartGraph


def held(snapshot, *generations):
    return AssignedSnapshot(
        snapshot=snapshot, digest=f"d{snapshot}", uri=f"file:///{snapshot}", generations=generations
    )


def replica_set(part, replicas, *holds, **fields):
    key = DeploymentKey(model="m", part=part, region="eu", hardware="cpu")
    return Deployment(key=key, replicas=replicas, engine="torch", units=1, qps=10, holds=holds, **fields)


def served(generation):
    graph = PartGraph.model_validate({"nodes": [{"name": "a", "part": "a", "inputs": {}}], "outputs": {"y": "a.y"}})
    return ServedGeneration(generation=generation, graph=graph, snapshots={"a": generation})


def kept(*sets, regions=("eu",), is_routed=True):
    shadow = Shadow(served=served(3), share=0.5)
    return ModelShadow(
        model="m",
        change_id="c",
        shadow=shadow,
        regions=regions,
        sets=sets,
        takes="",
        settings=ShadowSettings(),
        is_routed=is_routed,
    )


SHARED = replica_set("a", 2, held(1, 1, 2))
ADDED = replica_set("a", 1, held(3, 3), shadow={3: 1})
ALONE = replica_set("b", 1, held(4, 3), shadow={3: 1})


def test_a_shadow_comes_on_top_once_and_goes_without_a_trace():
    both = with_shadow([SHARED], kept(ADDED, ALONE))
    assert both == (
        replica_set("a", 3, held(1, 1, 2), held(3, 3), shadow={3: 1}),
        ALONE,
    )
    assert with_shadow(both, kept(ADDED, ALONE)) == both
    assert without_shadow(both) == (SHARED,) == with_shadow(both, None)


def test_a_region_that_is_drained_keeps_none_of_it():
    assert kept(ADDED, ALONE).outside({"us"}).sets == (ADDED, ALONE)
    left = kept(ADDED, ALONE).outside({"eu"})
    assert (left.sets, left.regions, left.put_into(table()).shadow) == ((), (), None)


def test_a_snapshot_of_both_is_held_once_for_all_of_its_generations():
    same = replica_set("a", 1, held(1, 3), shadow={3: 1})
    (both,) = with_shadow([SHARED], kept(same))
    assert both.holds == (held(1, 1, 2, 3),)
    assert (both.clients_replicas, both.clients_generations) == (2, {1, 2})


def table(*, generation=1, region="eu", **fields):
    shares = (RouteShare(to="eu", generation=generation, fraction=1.0),)
    return RouteTable(model="m", region=region, revision=1, shares=shares, served=(served(generation),), **fields)


def test_the_table_of_a_region_names_the_shadow_while_it_may():
    shadow = kept(ADDED)
    named = shadow.put_into(table())
    assert named.shadow == shadow.shadow
    assert RouteTable.model_validate_json(named.model_dump_json()) == named
    for other in (table(region="us"), table(generation=3), table().model_copy(update={"served": ()})):
        assert shadow.put_into(other).shadow is None
    assert kept(ADDED, is_routed=False).put_into(named).shadow is None
