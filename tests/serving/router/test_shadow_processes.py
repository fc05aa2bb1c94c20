"""A shadow of real hosts behind a real router: compared over its whole graph, and harmless if it stops or dies."""

import signal

import pytest

from ipnext.model.deployment.route_table import Shadow
from ipnext.model.deployment.router_table import PartEndpoint, RoutedModel, RouterTable
from tests.waiting import until

CLICK = "/v2/models/click"
CHOSEN = {"x-ipnext-chosen-by": "weight"}
PARTS = ("sparse", "dense")
MAX_IN_FLIGHT = 2


def endpoints(host, *generations):
    return tuple(PartEndpoint(part=part, url=host.url, generations=generations) for part in PARTS)


def settled(router, chosen):
    """The comparison once so many requests were chosen and nothing is under way: the last answer comes before that."""
    shadows = lambda: router.state().shadows  # noqa: E731
    return until(
        lambda: next((one for one in shadows() if one.chosen == chosen and not one.under_way), None),
        why=lambda: f"{chosen} are chosen: {shadows()}",
    )


def test_answers_are_compared_over_the_whole_graph_and_counted_nowhere_else(fleet, published, toolbox):
    router, count = fleet.router, 20
    shadow = Shadow(served=toolbox.served(2), share=1.0, seed=1)
    places = tuple(endpoint for host in fleet.hosts for endpoint in endpoints(host, 1, 2))
    fleet.follow(RoutedModel(model="click", served=(toolbox.served(1),), endpoints=places, shadow=shadow))
    before = {one.generation: one.requests for one in router.state().traffic}
    requests = [toolbox.example(8, seed) for seed in range(count)]
    for request in requests:
        answer = router.infer(f"{CLICK}/infer", request, **CHOSEN)
        assert answer.headers["x-ipnext-snapshots"] == "dense=1,sparse=1"
        assert toolbox.decode(answer).outputs["stamps"].data.tolist() == [[1, 1]] * 8
    found = settled(router, count)
    assert (found.key, found.compared, found.failures, found.mismatched) == (("click", 2, 1), count, {}, 0)
    [bucket] = found.outputs["stamps"].absolute
    assert found.outputs["stamps"].absolute == {bucket: count}, "2 against 1, from both parts"
    assert 0 not in found.outputs["score"].absolute
    assert sum(found.outputs["score"].overlap.values()) == count
    after = {one.generation: one.requests for one in router.state().traffic}
    assert after == before | {1: before.get(1, 0) + count}
    labels = 'generation="2",model="click",outcome="compared",region="north"'
    assert f"ipnext_shadow_requests_total{{{labels}}} {count}.0" in router.get("/metrics").text


class Pair:
    """A host with the live generation, and another one with the shadow, of the same snapshots."""

    def __init__(self, machine, published, toolbox):
        self.toolbox = toolbox
        self.live, self.shadow = (machine.start_host(name) for name in ("live", "shadow"))
        self.router = machine.start_router("router")
        for host, generation in ((self.live, 1), (self.shadow, 7)):
            host.hold(*(published.hold(part, 1, generation) for part in PARTS))
            assert not host.settle().failures
        same = toolbox.served(7).model_copy(update={"snapshots": dict.fromkeys(PARTS, 1)})
        shadow = Shadow(served=same, share=1.0, max_in_flight=MAX_IN_FLIGHT)
        places = (*endpoints(self.live, 1), *endpoints(self.shadow, 7))
        model = RoutedModel(model="click", served=(toolbox.served(1),), endpoints=places, shadow=shadow)
        self.router.follow(RouterTable(revision=1, region="north", models=(model,)))

    def ask(self, count):
        for seed in range(count):
            answer = self.router.infer(f"{CLICK}/infer", self.toolbox.example(4, seed), **CHOSEN)
            assert (answer.status_code, answer.headers["x-ipnext-generation"]) == (200, "1")

    @property
    def traffic(self):
        return {one.generation: (one.requests, one.errors) for one in self.router.state().traffic}

    @property
    def retries(self):
        name = 'ipnext_request_retries_total{generation="1",model="click",region="north"} '
        [line] = [line for line in self.router.get("/metrics").text.splitlines() if line.startswith(name)]
        return float(line.removeprefix(name))


@pytest.fixture
def pair(machine, published, toolbox):
    return Pair(machine, published, toolbox)


def test_clients_do_not_notice_that_the_host_of_a_shadow_stops_and_dies(pair):
    pair.ask(10)
    found = settled(pair.router, 10)
    assert (found.compared, found.outputs["score"].absolute) == (10, {0: 10}), "the same snapshots, bit by bit"

    pair.shadow.process.send_signal(signal.SIGSTOP)
    pair.ask(40)

    pair.shadow.process.kill()
    pair.ask(10)
    found = settled(pair.router, 60)
    assert found.failures.keys() <= {"HostLost", "Unavailable", "DeadlineExceeded"}
    assert found.compared + found.failed + sum(found.dropped.values()) == 60
    assert pair.traffic == {1: (60, 0)}
    assert pair.retries == 0
