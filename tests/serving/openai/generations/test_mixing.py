"""A rollout of all three parts under load, part by part.

`locked` mixes no snapshots, and `unsynced` must, or nothing is proven. Engines that embed put their snapshot's number
into their vectors, the ranker puts its own beside it, and the generator's name has its own: so each answer, which
begins with its prompt, says by itself which snapshots made it.
"""

import asyncio
import re
from contextlib import ExitStack
from dataclasses import dataclass

import pytest

from ipnext.model.registry.registry import SyncPolicy
from tests.serving.openai.conftest import mock_engine
from tests.serving.openai.mixed import COMPLETIONS, MODEL, PARTS, completion, routed
from tests.waiting import eventually

CLIENTS = 4
STAMPS = re.compile(r"embedder=(\d+) question=(\d+) ranker=(\d+)")
GENERATOR = re.compile(r"\nQuestion: which\?\nllm(\d+)-0")


@pytest.fixture(scope="module")
def fleet(ranker_hosts):
    """Part -> generation -> the URL of what answers with its snapshot."""
    with ExitStack() as stack:
        found = {"ranker": ranker_hosts, "embedder": {}, "llm": {}}
        for number in (1, 2):
            found["embedder"][number] = stack.enter_context(mock_engine(model=MODEL, stamp=number))
            found["llm"][number] = stack.enter_context(mock_engine(model=MODEL, name=f"llm{number}"))
        yield found


@dataclass(frozen=True)
class Answer:
    status: int
    generation: int = 0
    proof: tuple = ()
    used: tuple = ()

    @property
    def mixed(self):
        return len(set(self.used)) > 1


def read(answer):
    """What the headers say, and what the text says: embedder, ranker, llm.

    The question was embedded by one more call.
    """
    if answer.status_code != 200:
        return Answer(answer.status_code)
    text = answer.json()["choices"][0]["text"]
    rows = {tuple(map(int, row)) for row in STAMPS.findall(text)}
    assert len(rows) == 1, text
    ((embedder, question, ranker),) = rows
    assert embedder == question, "two calls of a part answered with two snapshots"
    proof = dict(pair.split("=") for pair in answer.headers["x-ipnext-snapshots"].split(","))
    used = (embedder, ranker, int(GENERATOR.search(text)[1]))
    return Answer(200, int(answer.headers["x-ipnext-generation"]), tuple(int(proof[part]) for part in PARTS), used)


class Load:
    """Clients that ask without pause, for the generations in `pins` in turn."""

    def __init__(self, edge, client):
        self.edge, self.client = edge, client
        self.answers, self.pins = [], ("1",)

    async def ask(self, number):
        while True:
            number += 1
            headers = {"x-ipnext-generation": self.pins[number % len(self.pins)]}
            answer = await self.client.post(self.edge.url + COMPLETIONS, json=completion(echo=True), headers=headers)
            self.answers.append(read(answer))

    async def more(self, count=12):
        start = len(self.answers)
        await eventually(lambda: len(self.answers) >= start + count, why=lambda: "more answers")


async def rolled_out(edge, client, fleet, sync):
    """All answers while the model went from generation 1 to 2.

    The new snapshots come part by part, the old ones go so.
    """
    held = {part: {1} for part in PARTS}

    def table(*generations):
        urls = {part: {} for part in PARTS}
        for part, numbers in held.items():
            for number in numbers:
                url = fleet[part][number]
                urls[part][url] = (*urls[part].get(url, ()), number)
        edge.table(routed(*generations, sync=sync, **urls))

    load = Load(edge, client)
    table(1)
    clients = [asyncio.create_task(load.ask(number)) for number in range(CLIENTS)]
    try:
        await load.more()
        load.pins = ("1", "2")
        for part in PARTS:
            held[part].add(2)
            table(1, 2)
            await load.more()
        load.pins = ("2",)
        await load.more()
        for part in PARTS:
            held[part].discard(1)
            table(1, 2)
            await load.more()
        table(2)
        await load.more()
    finally:
        for one in clients:
            one.cancel()
        ended = await asyncio.gather(*clients, return_exceptions=True)
        await eventually(lambda: edge.in_flight() == 0, why=lambda: "what was under way has ended")
    assert [one for one in ended if not isinstance(one, asyncio.CancelledError)] == []
    good = [answer for answer in load.answers if answer.status == 200]
    assert [answer for answer in good if answer.proof != answer.used] == [], "headers and text agree"
    assert {answer.generation for answer in good} == {1, 2}
    return load.answers, good


async def test_control_unsynced_mixes_and_the_detector_sees_it(edge, client, fleet):
    answers, good = await rolled_out(edge, client, fleet, SyncPolicy(policy="unsynced"))
    assert {answer.status for answer in answers} == {200}
    assert sum(answer.mixed for answer in good) > 0
    assert edge.counts(2, MODEL).substituted > 0


async def test_locked_mixes_nothing_and_refuses_what_it_cannot_answer_whole(edge, client, fleet):
    answers, good = await rolled_out(edge, client, fleet, SyncPolicy())
    assert [answer for answer in good if answer.mixed] == []
    assert all(answer.used == (answer.generation,) * 3 for answer in good)
    assert {answer.status for answer in answers} == {200, 503}, "generation 2 was not whole for a while"
    assert edge.counts(2, MODEL).substituted == 0
