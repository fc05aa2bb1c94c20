"""What a region that was lost is told when it is back."""

from types import SimpleNamespace

import pytest

from activities.regions import recovery as returning
from activities.regions.recovery import Returning
from ipnext.model.deployment import RegionState, RouteShare, RouteTable, ServedGeneration
from ipnext.model.registry import GraphNode, PartGraph

GRAPH = PartGraph(nodes=(GraphNode(name="p", part="p", inputs={"x": "request.x"}),), outputs={"y": "p.y"})


def table(region: str, to: str, sent: int, *known: int) -> RouteTable:
    served = tuple(ServedGeneration(generation=number, graph=GRAPH, snapshots={"p": number}) for number in known)
    shares = (RouteShare(to=to, generation=sent, fraction=1.0),)
    return RouteTable(model="m", region=region, revision=1, shares=shares, served=served)


@pytest.mark.parametrize(("sent", "kept"), [(2, [1, 2]), (1, [1])])
def test_its_router_keeps_what_gateways_of_other_regions_send_there(house, monkeypatch, sent, kept):
    """Its processes are to hold generation 1 only. Generation 3 was known, and nobody sends to it."""
    own, other = table("us-east", "us-east", 1, 1, 2, 3), table("eu-west", "us-east", sent)
    facts = SimpleNamespace(model="m", tables={"us-east": own, "eu-west": other}, deployments={})
    monkeypatch.setattr(returning, "read_routed", lambda *_: [facts])
    monkeypatch.setattr(returning, "served_generations", lambda *_: own.served[:1])

    state = RegionState(region="us-east", gateway_url="http://gateway", routes={"m": 4})
    [told] = Returning(house.store, house.infrastructure)._tables("us-east", state, {"m": 1})

    assert ([found.generation for found in told.served], told.revision, told.shares) == (kept, 5, own.shares)
