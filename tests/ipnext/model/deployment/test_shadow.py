"""A shadow in route tables: which ones are refused, and that reports are cut by model."""

import pytest
from pydantic import ValidationError

from ipnext.model.deployment.region_state import RegionState
from ipnext.model.deployment.route_table import RouteShare, RouteTable, Shadow
from ipnext.model.deployment.router_table import RoutedModel
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.gate.shadow import ShadowComparison
from ipnext.model.registry.registry import GraphNode, PartGraph

GRAPH = PartGraph(nodes=(GraphNode(name="a", part="a", inputs={"x": "request.x"}),), outputs={"y": "a.y"})


def served(generation, **more):
    return ServedGeneration(generation=generation, graph=GRAPH, snapshots={"a": generation}, **more)


def table(shadow, *generations, shares=None, **more):
    shares = {generations[0]: 1.0} if shares is None else shares
    return RouteTable(
        model="m",
        region="eu",
        revision=1,
        shares=tuple(RouteShare(to="eu", generation=number, fraction=part) for number, part in shares.items()),
        served=tuple(served(number) for number in generations),
        shadow=shadow,
        **more,
    )


def test_a_shadow_is_beside_the_served_generations_and_is_kept_as_it_is_written():
    shadow = Shadow(served=served(3), share=0.25, max_in_flight=2, seed=7)
    found = table(shadow, 1, 2)
    assert RouteTable.model_validate_json(found.model_dump_json()) == found
    assert found.shadow.generation == 3
    assert found.answering == {1}


@pytest.mark.parametrize("limits", [{"share": 0}, {"share": 1.01}, {"max_in_flight": 0}, {"seed": -1}, {"parts": 1}])
def test_a_shadow_out_of_range_is_refused(limits):
    with pytest.raises(ValidationError):
        Shadow(**{"served": served(3), "share": 1.0} | limits)


@pytest.mark.parametrize(
    ("served_too", "shares", "words"),
    [
        ((1, 3), None, "generation 3 is in `served`"),
        ((1,), {3: 1.0}, "generation 3 is in `shares`"),
        ((), {}, "`served` has no generation"),
    ],
)
def test_a_shadow_that_would_answer_clients_or_has_nothing_to_compare_with_is_refused(served_too, shares, words):
    with pytest.raises(ValidationError, match=words):
        table(Shadow(served=served(3), share=1.0), *served_too, shares=shares)


def test_a_model_that_generates_has_no_shadow():
    with pytest.raises(ValidationError, match=r"engine of their own \(a\); generated answers and streams"):
        Shadow(served=served(3, engines={"a": "vllm"}), share=1.0)
    generates = table(None, 1).model_copy(update={"served": (served(1, engines={"a": "vllm"}),)})
    with pytest.raises(ValidationError, match="generation 1 has parts with an engine of their own"):
        RouteTable(**dict(generates) | {"shadow": Shadow(served=served(3), share=1.0)})


def test_a_routers_model_has_no_shadow_that_it_serves():
    with pytest.raises(ValidationError, match="generation 1 is in `served`"):
        RoutedModel(model="m", served=(served(1),), shadow=Shadow(served=served(1), share=1.0))


def test_a_report_about_some_models_has_their_shadows_only():
    found = tuple(ShadowComparison(model=model, generation=2) for model in ("m", "n"))
    state = RegionState(region="eu", gateway_url="http://gateway", shadows=found)
    assert state.only({"n"}).shadows == found[1:]
