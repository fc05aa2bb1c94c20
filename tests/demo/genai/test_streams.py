"""The demo's record of streams must see what it claims to exclude. The mock engine stands in for Envoy and vLLM."""

import asyncio
import json
import threading

import aiohttp
import pytest
from aiohttp import web

from demo.genai.streams import Talk, Talkers, Told, ask, ask_once, chat_body


def chunk(text=None, *, finish=None, stream="chatcmpl-1"):
    delta = {} if text is None else {"content": text}
    return {"id": stream, "choices": [{"index": 0, "delta": delta, "finish_reason": finish}]}


def voice_of(text):
    return text.split()[0] if text.split() else None


def told(text="plain words", **changes):
    found = Told("why?", generation="1", proof="llm=1", done=True)
    found.take(chunk(text))
    found.take(chunk(finish="stop"))
    for name, value in changes.items():
        setattr(found, name, value)
    return found


def talk(*streams):
    found = Talk(voice_of)
    for stream in streams:
        found.note(stream)
    return found


def test_a_stream_that_ended_whole_counts_with_its_tokens():
    found = talk(told(longest_gap=0.5), told(longest_gap=0.2))
    assert (found.streams, found.broken, found.mixed, found.tokens, found.longest_gap) == (2, 0, 0, 2, 0.5)


@pytest.mark.parametrize("fault", [{"done": False}, {"finish": "abort"}, {"finish": None}, {"failure": "HTTP 503"}])
def test_a_stream_without_its_end_is_broken(fault):
    found = talk(told(**fault))
    assert (found.broken, len(found.failures)) == (1, 1)


def test_an_error_within_a_stream_breaks_it():
    stream = told()
    stream.take({"error": {"message": "the engine died"}})
    assert stream.broken
    assert "the engine died" in talk(stream).failures[0]


def test_the_voice_of_another_generation_is_mixed():
    assert talk(told("plain a"), told("Ahoy b", generation="2", proof="llm=2")).mixed == 0
    assert talk(told("plain a"), told("Ahoy b")).mixed == 1


def test_another_proof_under_the_same_generation_is_mixed():
    assert talk(told(), told(proof="llm=2")).mixed == 1


def test_pieces_of_two_engines_are_mixed():
    stream = told()
    stream.take(chunk("more", stream="chatcmpl-2"))
    assert talk(stream).mixed == 1


@pytest.fixture
async def gateway(aiohttp_server_of):
    return await aiohttp_server_of(["Ahoy", ", matey"], [None, None])


@pytest.fixture
async def aiohttp_server_of(listeners):
    """Starts a server that streams pieces, each after what it waits for; it says generation 7."""
    runners = []

    async def start(pieces, waits, *, whole=True, status=200):
        async def chat(request):
            if status != 200:
                return web.json_response({"error": {"message": "no engine"}}, status=status)
            headers = {"x-ipnext-generation": "7", "x-ipnext-snapshots": "llm=3", "content-type": "text/event-stream"}
            response = web.StreamResponse(headers=headers)
            await response.prepare(request)
            for text, wait in zip(pieces, waits, strict=True):
                if wait is not None:
                    await wait()
                await response.write(b"data: " + json.dumps(chunk(text)).encode() + b"\n\n")
            if whole:
                await response.write(b"data: " + json.dumps(chunk(finish="stop")).encode() + b"\n\ndata: [DONE]\n\n")
            return response

        app = web.Application()
        app.router.add_post("/v1/chat/completions", chat)
        runner = web.AppRunner(app)
        await runner.setup()
        runners.append(runner)
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return f"http://127.0.0.1:{runner.addresses[0][1]}"

    yield start
    for runner in runners:
        await runner.cleanup()


async def asked(url, on_text=lambda *_: None):
    async with aiohttp.ClientSession() as session:
        return await ask(session, url, chat_body("chat", "why?"), on_text)


async def test_pieces_are_told_as_they_come_with_their_generation(gateway):
    seen = []
    found = await asked(gateway, lambda stream, text: seen.append((stream.generation, text)))
    assert seen == [("7", "Ahoy"), ("7", ", matey")]
    assert (found.text, found.proof, found.broken) == ("Ahoy, matey", "llm=3", False)


async def test_the_longest_gap_between_pieces_is_told(aiohttp_server_of):
    heard = asyncio.Event()

    async def a_while_after_the_first():
        await heard.wait()
        await asyncio.sleep(0.15)

    url = await aiohttp_server_of(["Ahoy", ", matey"], [None, a_while_after_the_first])
    found = await asked(url, lambda *_: heard.set())
    assert found.longest_gap >= 0.14


async def test_a_stream_cut_off_is_broken(aiohttp_server_of):
    found = await asked(await aiohttp_server_of(["Ahoy"], [None], whole=False))
    assert found.broken


async def test_a_refusal_is_broken_and_says_why(aiohttp_server_of):
    found = await asked(await aiohttp_server_of([], [], status=503))
    assert found.broken
    assert "HTTP 503" in found.failure
    assert "no engine" in found.failure


async def test_one_who_waits_gets_the_same(gateway):
    found = await asyncio.to_thread(ask_once, gateway, chat_body("chat", "why?"), lambda *_: None)
    assert found.text == "Ahoy, matey"


async def test_talkers_end_with_whole_answers(gateway):
    enough = threading.Event()

    class Counted(Talk):
        def note(self, told):
            super().note(told)
            if self.streams >= 4:
                enough.set()

    found = Counted(voice_of)

    def talk_for_a_while():
        with Talkers(gateway, "chat", ["a?", "b?"], found, clients=3):
            assert enough.wait(60)

    await asyncio.to_thread(talk_for_a_while)
    assert (found.broken, found.mixed, set(found.by_generation)) == (0, 0, {"7"})
    assert found.streams >= 6
