"""Following a table file: every rename is picked up, a bad file never replaces a good table."""

import pytest

from ipnext.errors import NotFound, Unavailable
from ipnext.model.deployment.router_table import PartEndpoint, RoutedModel, RouterTable
from ipnext.model.registry.registry import SyncPolicy
from serving.routing.table import TableFollower, compile_routes


def endpoint(part, url, *generations):
    return PartEndpoint(part=part, url=url, generations=generations)


@pytest.fixture
def table(toolbox):
    def make(revision, *endpoints, generations=(1, 2), region="north"):
        model = RoutedModel(
            model="click", served=tuple(toolbox.served(number) for number in generations), endpoints=endpoints
        )
        return RouterTable(revision=revision, region=region, models=(model,))

    return make


def hosts(route):
    return {part: [candidate.url for tier in tiers for candidate in tier] for part, tiers in route.candidates.items()}


FULL = (endpoint("sparse", "s1", 1, 2), endpoint("sparse", "s2", 2), endpoint("dense", "d1", 1, 2))


ON_KINDS = (
    endpoint("sparse", "s1", 1).model_copy(update={"hardware": "small"}),
    endpoint("sparse", "s2", 1).model_copy(update={"hardware": "large"}),
    endpoint("dense", "d1", 1),
)


@pytest.fixture
def on_kinds(toolbox):
    """Generation 1 of a policy, whose part sparse has snapshot 9 on hardware kind small."""

    def make(policy="locked", derived=9, **more):
        sync = SyncPolicy(policy=policy, **more)
        served = toolbox.served(1, sync=sync).model_copy(update={"by_hardware": {"small": {"sparse": derived}}})
        model = RoutedModel(model="click", served=(served,), endpoints=ON_KINDS)
        return compile_routes(RouterTable(revision=1, region="north", models=(model,))).model("click").choose("1")

    return make


@pytest.mark.parametrize("policy", [{}, {"policy": "bounded", "max_snapshots": 0}, {"policy": "unsynced"}])
def test_hosts_of_each_hardware_kind_answer_with_their_derivative(on_kinds, policy):
    route = on_kinds(**policy)
    [first] = [tier for tier in route.candidates["sparse"] if tier]
    assert {candidate.url: candidate.snapshot for candidate in first} == {"s1": 9, "s2": 1}
    assert route.whole


def test_a_derivative_that_answered_is_named_and_is_no_substitute(on_kinds):
    route = on_kinds()
    assert route.snapshots_text({"sparse": 9}) == "dense=1,sparse=9"
    assert route.snapshots_text({"sparse": 1}) == route.proof == "dense=1,sparse=1"
    assert not route.is_substituted({"sparse": 9, "dense": 1})
    assert route.is_substituted({"sparse": 8})


@pytest.mark.parametrize(
    ("proof", "proved"),
    [
        ({"sparse": 9, "dense": 1}, True),
        ({"sparse": 1, "dense": 1}, True),
        ({"sparse": 1, "dense": 9}, False),
        ({"sparse": 9}, False),
        ({"sparse": [9], "dense": 1}, False),
        (None, False),
    ],
)
def test_a_host_that_executes_the_graph_proves_a_derivative_of_each_part(on_kinds, proof, proved):
    assert on_kinds().is_proved(proof) is proved


def test_routes_with_other_derivatives_differ(on_kinds):
    assert on_kinds().has_snapshots_of(on_kinds())
    assert not on_kinds().has_snapshots_of(on_kinds(derived=8))


def test_only_endpoints_of_the_chosen_generation_are_used(table):
    routes = compile_routes(table(1, *FULL)).model("click")
    assert hosts(routes.choose("1")) == {"sparse": ["s1"], "dense": ["d1"]}
    assert hosts(routes.choose("2")) == {"sparse": ["s1", "s2"], "dense": ["d1"]}


def test_without_a_pin_the_newest_generation_with_hosts_for_all_parts_is_chosen(table):
    assert compile_routes(table(1, *FULL)).model("click").choose(None).generation == 2
    partial = (*FULL[:2], endpoint("dense", "d1", 1))
    assert compile_routes(table(1, *partial)).model("click").choose(None).generation == 1


def test_a_model_that_has_not_changed_keeps_its_routes(table):
    former = compile_routes(table(1, *FULL))
    [click] = table(2, *FULL).models
    other, moved = click.model_copy(update={"model": "other"}), click.model_copy(update={"endpoints": FULL[1:]})
    routes = compile_routes(RouterTable(revision=2, region="north", models=(click, other)), former)
    assert (routes.revision, set(routes.models)) == (2, {"click", "other"})
    assert routes.model("click") is former.model("click")
    after = compile_routes(RouterTable(revision=3, region="north", models=(moved, other)), routes)
    assert hosts(after.model("click").choose("2")) == {"sparse": ["s2"], "dense": ["d1"]}
    assert after.model("other") is routes.model("other")


def test_a_pinned_generation_without_hosts_is_unavailable(table):
    partial = (*FULL[:2], endpoint("dense", "d1", 1))
    with pytest.raises(Unavailable, match="generation 2 of click has no host ready for dense"):
        compile_routes(table(1, *partial)).model("click").choose("2")


@pytest.mark.parametrize("pin", ["3", "x", "", "-1", "1.0", "٢", "9" * 40])
def test_a_pin_that_is_not_served_is_not_found_and_the_served_are_named(table, pin):
    with pytest.raises(NotFound, match="served: 1, 2"):
        compile_routes(table(1, *FULL)).model("click").choose(pin)


def test_an_unknown_model_is_not_found_and_known_ones_are_named(table):
    with pytest.raises(NotFound, match="'other' is not served here"):
        compile_routes(table(1, *FULL)).model("other")


def test_a_model_without_generations_is_unavailable(table):
    with pytest.raises(Unavailable, match="serves no generation yet"):
        compile_routes(table(1, generations=())).model("click").choose(None)


def test_a_file_is_followed_through_renames_and_bad_content_is_passed_over(tmp_path, table, toolbox):
    path = tmp_path / "table.json"
    follower = TableFollower(path, region="north")
    follower.look()
    assert (follower.found, follower.routes.revision) == (False, 0)
    toolbox.write_table(path, table(1, *FULL))
    follower.look()
    assert (follower.found, follower.routes.revision) == (True, 1)
    path.write_text("{")
    follower.look()
    assert follower.routes.revision == 1
    toolbox.write_table(path, table(2, *FULL, region="south"))
    follower.look()
    assert follower.routes.revision == 1
    toolbox.write_table(path, table(3, *FULL))
    follower.look()
    assert follower.routes.revision == 3
    path.unlink()
    follower.look()
    assert follower.routes.revision == 3
