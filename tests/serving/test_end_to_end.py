"""Real router, real hosts: equal bits, and under load no failed and no mixed answer through flips and kills."""

import asyncio
import itertools
import socket
import threading
from collections import Counter
from dataclasses import dataclass, field

import pytest
import torch

from ipnext.model.deployment.router_table import PartEndpoint
from serving.graph import plan_graph, run_graph
from serving.protocol.v2 import decode_response, parse_header_length
from tests.waiting import PATIENCE_SECONDS, until

INFER = "/v2/models/click/infer"


@dataclass(frozen=True)
class Answer:
    """What a client can tell about one answer."""

    status: int
    pin: str | None = None
    generation: str | None = None
    stamps: frozenset[int] = frozenset()
    """Numbers of all snapshots that took part, as the model's own output says."""


def mixed(answer: Answer) -> bool:
    """The detector: more than one snapshot took part, or not the one of the proof, or not the pinned one."""
    if answer.status != 200:
        return False
    if len(answer.stamps) != 1:
        return True
    [stamp] = answer.stamps
    return answer.generation != str(stamp) or answer.pin not in (None, str(stamp))


@dataclass
class Load:
    """Clients in threads that send requests until told to stop."""

    router: object
    request: dict
    pins: tuple[str | None, ...] = (None,)
    clients: int = 3
    answers: list[Answer] = field(default_factory=list)

    def __enter__(self):
        self._stop = threading.Event()
        self._threads = [threading.Thread(target=self._send, args=(n,)) for n in range(self.clients)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *error):
        self._stop.set()
        for thread in self._threads:
            thread.join(PATIENCE_SECONDS)

    def _send(self, number):
        pins = itertools.cycle(self.pins[number % len(self.pins) :] + self.pins[: number % len(self.pins)])
        while not self._stop.is_set():
            pin = next(pins)
            headers = {} if pin is None else {"x-ipnext-generation": pin}
            self.answers.append(read(self.router.infer(INFER, self.request, **headers), pin))

    def statuses(self):
        return Counter(answer.status for answer in self.answers)


def read(response, pin) -> Answer:
    if response.status_code != 200:
        return Answer(response.status_code, pin)
    length = parse_header_length(response.headers["inference-header-content-length"])
    stamps = decode_response(response.content, length).outputs["stamps"].data
    generation = response.headers["x-ipnext-generation"]
    return Answer(200, pin, generation, frozenset(stamps.ravel().tolist()))


@pytest.mark.parametrize("batch", [1, 2, 64, 257])
def test_a_request_through_two_parts_has_the_bits_of_the_unsplit_model(fleet, toolbox, batch):
    request = toolbox.example(batch, seed=batch)
    answer = toolbox.decode(fleet.router.infer(INFER, request))
    expected = fleet.published.expected(2, request)
    assert torch.equal(torch.from_numpy(answer.outputs["score"].data), expected["score"])
    assert torch.equal(torch.from_numpy(answer.outputs["stamps"].data), expected["stamps"])


def test_a_generation_flip_under_load_fails_nothing_and_mixes_nothing(fleet, toolbox):
    with Load(fleet.router, toolbox.example(2), pins=(None, "1", "2")) as load:
        for seen in range(40, 280, 40):
            until(lambda seen=seen: len(load.answers) >= seen)
            fleet.serve(1, 2) if seen % 80 else fleet.serve(2, 1)
    assert set(load.statuses()) == {200}
    assert not [answer for answer in load.answers if mixed(answer)]


def test_unpinned_requests_move_to_the_new_generation_and_none_fails(fleet, toolbox):
    fleet.serve(1)
    with Load(fleet.router, toolbox.example(2)) as load:
        for generations in ((1, 2), (1,), (1, 2), (2,)):
            seen = len(load.answers)
            until(lambda seen=seen: len(load.answers) >= seen + 40)
            fleet.serve(*generations)
        seen = len(load.answers)
        until(lambda: len(load.answers) >= seen + 20)
    assert set(load.statuses()) == {200}
    assert not [answer for answer in load.answers if mixed(answer)]
    assert {answer.generation for answer in load.answers} == {"1", "2"}
    assert load.answers[-1].generation == "2"


async def test_control_a_balancer_that_mixes_is_found_by_the_same_detector(fleet, toolbox):
    """Each hop picks a generation on its own, as an unsynced rollout would. If this finds nothing, `mixed` is blind."""
    generations = itertools.cycle((1, 2, 2))

    async def call(part, inputs):
        arrays = {name: tensor.data for name, tensor in inputs.items()}
        response = await asyncio.to_thread(fleet.hosts[0].infer_part, part, next(generations), arrays)
        return toolbox.decode(response).outputs

    request = toolbox.as_tensors(toolbox.example(2))
    answers = []
    for _ in range(6):
        outputs = await run_graph(plan_graph(toolbox.graph), request, call)
        answers.append(Answer(200, None, "2", frozenset(outputs["stamps"].data.ravel().tolist())))
    assert [answer for answer in answers if mixed(answer)]
    assert any(len(answer.stamps) == 2 for answer in answers)


def test_a_host_killed_under_load_fails_no_request(fleet, machine, published, toolbox):
    victim = machine.start_host("victim")
    victim.hold(published.hold("sparse", 1), published.hold("sparse", 2))
    victim.settle()
    fleet.serve(1, 2, extra=[PartEndpoint(part="sparse", url=victim.url, generations=(1, 2))])
    with Load(fleet.router, toolbox.example(2), clients=4) as load:
        until(lambda: len(load.answers) >= 40)
        victim.process.kill()
        until(lambda: len(load.answers) >= 200)
    assert set(load.statuses()) == {200}
    assert not [answer for answer in load.answers if mixed(answer)]


def test_a_host_that_drains_or_lacks_the_generation_costs_no_request(fleet, machine, published, toolbox):
    """The table is older than the host's state, as it is for a moment in every rollout."""
    late = machine.start_host("late")
    late.hold(published.hold("sparse", 1), published.hold("sparse", 2))
    late.settle()
    fleet.serve(1, 2, extra=[PartEndpoint(part="sparse", url=late.url, generations=(1, 2))])
    with Load(fleet.router, toolbox.example(2), clients=4) as load:
        until(lambda: len(load.answers) >= 40)
        late.hold(published.hold("sparse", 1))
        until(lambda: len(load.answers) >= 80)
        late.process.terminate()
        until(lambda: len(load.answers) >= 160)
    assert set(load.statuses()) == {200}
    assert not [answer for answer in load.answers if mixed(answer)]
    assert late.process.wait(PATIENCE_SECONDS) == 0


def test_with_all_hosts_of_a_part_gone_the_answer_is_503(fleet, toolbox):
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{closed.getsockname()[1]}"
        fleet.serve(2, parts=("dense",), extra=[PartEndpoint(part="sparse", url=url, generations=(2,))])
        response = fleet.router.infer(INFER, toolbox.example(2))
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert "no host answers" in response.json()["error"]
    assert response.headers["x-ipnext-generation"] == "2"
