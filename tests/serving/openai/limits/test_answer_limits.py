"""What a router keeps of engines' answers is bounded; what streams is not kept."""

import asyncio
import gc
import tracemalloc
from contextlib import suppress

import pytest

from ipnext.errors import AnswerTooLarge
from serving.http.limits import AnswerBudget
from serving.openai.engines import registry
from serving.openai.engines.connection import EngineConnectionPool
from serving.openai.engines.response import AHEAD_BYTES, PIECE_BYTES, EngineAnswer, EngineLost
from serving.router.router import RouterLimits
from tests.serving.openai.conftest import raw_engine, running_edge
from tests.serving.openai.test_routes import CHAT, ask
from tests.waiting import eventually

NAME = "llm@0000000000000001"
HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ntransfer-encoding: chunked\r\n\r\n"
PIECE = b"%x\r\n%b\r\n" % (2**16, bytes(2**16))


async def endless(_, __, ___, writer):
    """Blanks without an end, and never the name of the model."""
    writer.write(HEAD)
    while True:
        writer.write(PIECE)
        await writer.drain()


@pytest.fixture
async def small(tmp_path, listeners):
    limits = RouterLimits(answers=AnswerBudget(2**20, 2**22))
    async with running_edge(tmp_path / "router.json", limits) as edge:
        edge.answers = limits.answers
        yield edge


async def test_an_answer_that_never_says_whose_it_is_ends_at_the_limit(small, client):
    async with raw_engine(endless) as engine:
        small.serve(engine.url, answers_as={engine.url: NAME})
        answer = await client.post(small.url + CHAT, json=ask())
        await eventually(lambda: engine.left)
    assert (answer.status_code, answer.headers["x-ipnext-error"]) == (502, "AnswerTooLarge")
    assert f"{2**20} bytes" in answer.json()["error"]["message"]
    assert small.answers.held_bytes == 0


async def test_answers_beyond_the_budget_are_refused_and_others_stream(small, client):
    """A full budget ends no stream: what is passed on at once is not kept."""

    async def script(_, __, ___, writer):
        writer.write(HEAD + b'e\r\n{"text":"begun\r\n')
        await going.wait()
        writer.write(b"4\r\nmore\r\n0\r\n\r\n")

    going = asyncio.Event()
    async with raw_engine(script) as engine:
        small.serve(engine.url)
        async with client.stream("POST", small.url + CHAT, json=ask()) as stream:
            small.answers.held_bytes += 2**22
            refused = await client.post(small.url + CHAT, json=ask())
            going.set()
            text = await stream.aread()
            small.answers.held_bytes -= 2**22
        good = await client.post(small.url + CHAT, json=ask())
    assert text == b'{"text":"begunmore'
    assert (refused.status_code, refused.json()["error"]["type"]) == (503, "ServiceUnavailableError")
    assert "--answer-budget-bytes" in refused.json()["error"]["message"]
    assert good.status_code == 200
    assert small.answers.held_bytes == 0


@pytest.fixture
def uncollected():
    """No garbage collection: what is not needed any more is released at once."""
    gc.collect()
    gc.disable()
    yield
    gc.enable()


class Line:
    """A connection that notes whether it is read."""

    paused = False

    def pause(self):
        self.paused = True

    def resume(self):
        self.paused = False

    close = resume


async def test_an_answer_that_nothing_takes_is_not_read_on():
    line, budget, sent = Line(), AnswerBudget(), []

    class Sink:
        write = sent.append

    answer = EngineAnswer(line, budget)
    answer.piece(bytes(AHEAD_BYTES - PIECE_BYTES))
    assert not line.paused
    answer.piece(b"1")
    assert line.paused
    answer.start(Sink)
    assert (line.paused, len(sent[0]), budget.held_bytes) == (False, AHEAD_BYTES - PIECE_BYTES + 1, 0)


async def test_pieces_count_by_the_memory_that_they_take():
    """An engine that sends two bytes at a time."""
    budget = AnswerBudget(2**22)
    answer = EngineAnswer(Line(), budget)
    tracemalloc.start()
    try:
        before = tracemalloc.get_traced_memory()[0]
        for number in range(10_000):
            answer.piece(b"%02d" % (number % 100))
        taken = tracemalloc.get_traced_memory()[0] - before
    finally:
        tracemalloc.stop()
    assert taken <= budget.held_bytes < 2 * taken
    assert await answer_bytes(answer) == 20_000
    assert budget.held_bytes == 0


async def answer_bytes(answer):
    answer.whole()
    return len(await answer.rest())


async def test_headers_without_an_end_end_the_connection(listeners):
    async def script(_, __, ___, writer):
        writer.write(b"HTTP/1.1 200 OK\r\n")
        while True:
            writer.write(b"x: " + b"a" * 1000 + b"\r\n")
            await writer.drain()

    async with raw_engine(script) as engine:
        with pytest.raises(EngineLost):
            await EngineConnectionPool(engine.url).ask("GET", "/x", {}, b"")
        await eventually(lambda: engine.left)


async def test_metrics_without_an_end_are_dropped_and_asked_for_again(monkeypatch, listeners):
    monkeypatch.setattr(registry, "POLL_SECONDS", 0.01)
    engines = registry.EngineRegistry()
    monkeypatch.setattr(registry, "REPORT_LIMIT_SECONDS", 3600.0)
    reported = []
    monkeypatch.setattr(engines.loads, "note_report", lambda _, report: reported.append(report))
    text = b"\nvllm:num_requests_running 3\n"

    async def metrics(reader, writer):
        with suppress(asyncio.IncompleteReadError, ConnectionError):
            while await reader.readuntil(b"\r\n\r\n"):
                asked.append(1)
                if len(asked) == 1:
                    await endless(None, None, None, writer)
                writer.write(b"HTTP/1.1 200 OK\r\ncontent-length: %d\r\n\r\n%b" % (len(text), text))
        writer.transport.abort()

    asked = []
    server = await asyncio.start_server(metrics, "127.0.0.1", 0)
    url = f"http://127.0.0.1:{server.sockets[0].getsockname()[1]}"
    try:
        engines.keep({url: 1.0}, chosen_among=[url])
        await eventually(lambda: reported)
    finally:
        engines.close()
        server.close()
        await asyncio.sleep(0.01)
    assert reported[0].running == 3


def lose(answer):
    answer.lost()


def exceed(answer):
    answer.piece(bytes(2**11))


def exceed_later(answer):
    answer.piece(b"begun")
    asyncio.get_running_loop().call_soon(answer.piece, bytes(2**11))


@pytest.mark.parametrize("end", [lose, exceed, exceed_later])
@pytest.mark.usefixtures("uncollected")
async def test_an_answer_that_failed_keeps_nothing_of_another(end):
    async def ask_two():
        first, second = EngineAnswer(Line(), AnswerBudget(2**10)), EngineAnswer(Line(), budget)
        second.piece(bytes(1000))
        end(first)
        with suppress(EngineLost, AnswerTooLarge):
            await first.wait_begun()
            await first.rest()
        return first.pieces

    budget = AnswerBudget()
    await ask_two()
    assert budget.held_bytes == 0


async def test_a_whole_answer_that_was_taken_does_not_count():
    budget = AnswerBudget()
    answer = EngineAnswer(Line(), budget)
    answer.piece(b"begun ")
    assert answer.take_complete() is None
    answer.piece(b"ended")
    answer.whole()
    assert (answer.take_complete(), budget.held_bytes) == (b"begun ended", 0)
