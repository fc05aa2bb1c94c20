"""Sending the traffic around a lost region while models are being retired."""

from contextlib import contextmanager
from types import SimpleNamespace

import pytest

from activities import surviving
from activities.surviving import Surviving
from ipnext.model.deployment import RegionState, RouteShare, RouteTable


def table(model: str) -> RouteTable:
    return RouteTable(
        model=model, region="eu", revision=2, shares=(RouteShare(to="eu", generation=1, fraction=1.0),), served=()
    )


class Regions:
    def __init__(self) -> None:
        self.told = []

    def observe(self, region, _models):
        return RegionState(region=region, gateway_url="http://gateway", routes={})

    def route(self, found):
        self.told.append(("route", found.model))

    def unroute(self, model, region):
        self.told.append(("unroute", model, region))


class Written:
    """A store in which these models are being retired when it is read, and when it is written."""

    def __init__(self, read: set[str], write: set[str]) -> None:
        self.retiring, self.put = {"read": read, "write": write}, []

    def _repository(self, when):
        return SimpleNamespace(
            models_routed_to=lambda _: ("a", "b"),
            retiring_models=lambda: frozenset(self.retiring[when]),
            put_route=lambda found: self.put.append(found.model),
        )

    @contextmanager
    def read(self):
        yield self._repository("read")

    @contextmanager
    def begin(self):
        yield self._repository("write")


@pytest.fixture
def sent(monkeypatch):
    def facts(_, model, _target):
        return SimpleNamespace(model=model, tables={"eu": table(model)}, lost=frozenset({"us"}))

    monkeypatch.setattr(surviving, "read_facts", facts)
    monkeypatch.setattr(surviving, "tables_around", lambda found, _: [table(found.model)])

    def run(*, read=(), write=()):
        regions, written = Regions(), Written(set(read), set(write))
        Surviving(written, regions).send_around("us")
        return sorted(regions.told), written.put

    return run


def test_every_model_is_sent_around(sent):
    assert sent() == ([("route", "a"), ("route", "b")], ["a", "b"])


def test_a_model_that_is_being_retired_is_not(sent):
    assert sent(read={"a"}, write={"a"}) == ([("route", "b")], ["b"])


def test_one_whose_retirement_began_meanwhile_is_forgotten_again(sent):
    assert sent(write={"a"}) == ([("route", "a"), ("route", "b"), ("unroute", "a", "eu")], ["b"])
