"""Real hosts and a real router while generations are flipped again and again: each policy mixes as much as it allows.

`unsynced` is the control: if it does not mix, the detector is blind and the other runs prove nothing.
"""

import pytest

from ipnext.model.deployment.router_table import PartEndpoint, RoutedModel
from ipnext.model.registry.registry import GraphNode, PartGraph, SyncPolicy
from tests.serving.load import INFER, Load

PARTS = ("sparse", "dense")


class Rollout:
    """Two hosts of both parts, taken from one generation to the next as a region's agent would, step by step."""

    def __init__(self, fleet, published, sync, toolbox):
        self.fleet, self.published, self.sync, self.toolbox = fleet, published, sync, toolbox
        self.held = [dict.fromkeys(PARTS, ()) for _ in fleet.hosts]

    def hold(self, host, *numbers, parts=PARTS):
        """Let a host load these snapshots; the router is told once they are ready, and first of those that go."""
        wanted = {part: numbers if part in parts else self.held[host][part] for part in PARTS}
        before = self.held[host]
        self.held[host] = {part: tuple(n for n in before[part] if n in wanted[part]) for part in PARTS}
        self.route(*self.generations)
        server = self.fleet.hosts[host]
        server.hold(*(self.published.hold(part, n) for part in PARTS for n in wanted[part]))
        assert not server.settle().failures
        self.held[host] = wanted
        self.route(*self.generations)

    generations: tuple[int, ...] = ()

    def route(self, *generations):
        self.generations = generations
        endpoints = [
            PartEndpoint(part=part, url=host.url, generations=held[part])
            for host, held in zip(self.fleet.hosts, self.held, strict=True)
            for part in PARTS
            if held[part]
        ]
        served = tuple(self.toolbox.served(number, self.sync) for number in generations)
        self.fleet.follow(RoutedModel(model="click", served=served, endpoints=tuple(endpoints)))

    def flip(self, load, old, new, *, answers=30):
        """From one generation to another: part by part, host by host, with clients on both."""
        self.route(old, new)
        self.hold(0, old, new, parts=("sparse",))
        load.pins = (str(old), str(new))
        load.more(answers)
        self.hold(0, old, new)
        load.more(answers)
        self.hold(1, old, new)
        load.pins = (str(new),)
        load.more(answers)
        self.route(new)
        for host in (0, 1):
            self.hold(host, new)
        load.more(answers)


@pytest.fixture
def flipped(session_fleet, published, toolbox):
    """All answers given while a model of this policy went through generations 1, 2, 3 and 1 again."""

    def run(sync):
        rollout = Rollout(session_fleet, published, sync, toolbox)
        for host in (0, 1):
            rollout.hold(host, 1)
        rollout.route(1)
        with Load(session_fleet.router, toolbox.example(2)) as load:
            for old, new in ((1, 2), (2, 3), (3, 1)):
                rollout.flip(load, old, new)
        return load

    yield run
    for host in session_fleet.hosts:
        host.hold(*(published.hold(part, number) for part in PARTS for number in (1, 2)))
        host.settle()


def answered(load):
    """The answers that hold data; what their headers say is what their data say."""
    answers = [answer for answer in load.answers if answer.status == 200]
    assert [answer for answer in answers if answer.proof != answer.used] == []
    assert {answer.generation for answer in answers} == {1, 2, 3}
    return answers


def test_control_unsynced_mixes_and_refuses_nothing(flipped):
    load = flipped(SyncPolicy(policy="unsynced"))
    answers = answered(load)
    assert set(load.statuses()) == {200}
    assert sum(answer.mixed for answer in answers) > 0
    assert max(answer.apart for answer in answers) == 2


def test_locked_mixes_nothing_and_refuses_what_it_cannot_answer_whole(flipped):
    load = flipped(SyncPolicy())
    answers = answered(load)
    assert set(load.statuses()) == {200, 503}
    assert [answer for answer in answers if answer.mixed or answer.apart] == []


def test_bounded_mixes_within_its_bound_and_refuses_what_lies_beyond(flipped):
    load = flipped(SyncPolicy(policy="bounded", max_snapshots=1))
    answers = answered(load)
    assert {answer.apart for answer in answers} == {0, 1}
    assert sum(answer.mixed for answer in answers) > 0
    assert set(load.statuses()) == {200, 503}, "from 3 to 1 is two snapshots"


def test_a_bound_in_seconds_is_kept_alike(flipped):
    """Snapshots were made an hour apart."""
    load = flipped(SyncPolicy(policy="bounded", max_seconds=3600.0))
    assert {answer.apart for answer in answered(load)} == {0, 1}


def test_the_answer_of_a_one_part_model_names_what_stood_in_too(fleet, toolbox):
    """There the host writes the body."""
    node = GraphNode(name="lookup", part="sparse", inputs={"ids": "request.ids"})
    graph = PartGraph(nodes=(node,), outputs={"stamp": "lookup.stamp", "embedding": "lookup.embedding"})
    bounded = SyncPolicy(policy="bounded", max_snapshots=1)
    served = tuple(toolbox.served(number, bounded) for number in (1, 2))
    endpoint = PartEndpoint(part="sparse", url=fleet.hosts[0].url, generations=(1,))
    request = {"ids": toolbox.example(2)["ids"]}
    for outputs in (graph.outputs, {"renamed": "lookup.stamp"}):
        renamed = graph.model_copy(update={"outputs": outputs})
        served = tuple(each.model_copy(update={"graph": renamed}) for each in served)
        fleet.follow(RoutedModel(model="click", served=served, endpoints=(endpoint,)))
        response = fleet.router.infer(INFER, request, **{"x-ipnext-generation": "2"})
        answer = toolbox.decode(response)
        assert answer.outputs[next(iter(outputs))].data.tolist() == [1, 1]
        assert (answer.model_version, answer.parameters["generation"]) == ("2", 2)
        assert "sparse=1" in answer.parameters["snapshots"].split(",")
        assert response.headers["x-ipnext-generation"] == "2"
        assert "sparse=1" in response.headers["x-ipnext-snapshots"].split(",")
    assert "ipnext_substituted_answers_total" in fleet.router.get("/metrics").text
