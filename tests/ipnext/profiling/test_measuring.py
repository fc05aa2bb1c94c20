"""The measurement finds what the mock engine was told. Steps end by counts; latencies only have lower bounds here."""

import pytest

from ipnext.errors import InvalidInput, Unavailable
from ipnext.profiling.engine import ProfiledEngine, random_prompt
from ipnext.profiling.measuring import RequestLoad, measure
from tests.waiting import eventually

QUICK = {"seconds": 0.0, "prompt_tokens": 40, "output_tokens": 5}


async def profiled(mock, **load):
    async with ProfiledEngine(mock.url) as engine:
        return await measure(engine, RequestLoad(**(QUICK | load)))


async def test_it_sees_the_latencies_that_the_engine_has(start):
    mock = await start(ttft_ms=30.0, itl_ms=12.0)
    found = await profiled(mock, concurrency=(1, 3), fewest_requests=6)
    assert [step.concurrency for step in found.steps] == [1, 3]
    for step in found.steps:
        assert step.requests >= 6
        assert 30 <= step.ttft_p50_ms <= step.ttft_p99_ms
        assert 11 <= step.itl_p50_ms <= step.itl_p99_ms
        most = step.concurrency * 5 / (0.030 + 4 * 0.012)
        assert 0 < step.tokens_per_second <= most * 1.25  # a window may begin with pieces of what ran before
        assert step.others_running == 0
    assert found.steps[1].tokens_per_second > found.steps[0].tokens_per_second


async def test_prompts_have_the_asked_length_and_no_prefix_in_common(start):
    mock = await start()
    found = await profiled(mock, concurrency=(2,), prompt_tokens=64, fewest_requests=8)
    assert found.prompt_tokens == pytest.approx(64)
    assert (mock.cache.hits, mock.cache.queries > 500) == (0, True)
    assert len({random_prompt(5) for _ in range(50)}) == 50


async def test_more_readers_than_the_engine_serves_wait_for_their_first_token(start):
    mock = await start(ttft_ms=10.0, itl_ms=4.0, max_num_seqs=1)
    found = await profiled(mock, concurrency=(1, 4), fewest_requests=8)
    one, four = found.steps
    assert four.ttft_p50_ms > 2 * one.ttft_p50_ms
    assert four.ttft_p99_ms >= 3 * (10 + 4 * 4)


async def test_nothing_runs_on_in_the_engine_once_it_is_measured(start):
    mock = await start(itl_ms=20.0)
    await profiled(mock, concurrency=(4,), output_tokens=200)
    await eventually(lambda: not mock.running and not mock.waiting)
    assert mock.aborted > 0


async def test_a_request_of_another_is_seen(start):
    mock = await start(itl_ms=5.0)
    async with ProfiledEngine(mock.url) as other:
        await other.find_model()
        stream = other.stream("a b c", 100_000)
        await anext(stream)
        found = await profiled(mock, concurrency=(1,))
        await stream.aclose()
    assert found.steps[0].others_running == 1


async def test_an_embedding_engine_is_measured_by_its_prompts(start):
    mock = await start()
    found = await profiled(mock, concurrency=(2,), output_tokens=0)
    [step] = found.steps
    assert (step.itl_p50_ms, step.requests >= 5) == (None, True)
    assert step.requests_per_second > 0


async def test_the_model_asked_for_is_used_where_it_is_listed_and_else_the_first(start):
    mock = await start(model="m")
    async with ProfiledEngine(mock.url) as engine:
        for name in ("m", "other"):
            await engine.choose_model(name)
            assert await engine.find_model() == "m"
        assert await engine.version() == ""


async def test_what_is_no_engine_is_unavailable_with_its_address():
    async with ProfiledEngine("http://127.0.0.1:9") as engine:
        with pytest.raises(Unavailable, match=r"http://127\.0\.0\.1:9/v1/models does not answer"):
            await measure(engine, RequestLoad())


async def test_a_request_that_the_engine_refuses_is_told_in_its_words(start):
    mock = await start()
    async with ProfiledEngine(mock.url, "unknown") as engine:
        with pytest.raises(InvalidInput, match="The model `unknown` does not exist"):
            await measure(engine, RequestLoad(**QUICK))


async def test_an_engine_that_breaks_off_ends_the_measurement(start, monkeypatch):
    mock = await start()
    calls = 0
    whole = type(mock).streamed

    async def breaks(self, request, *rest):
        nonlocal calls
        calls += 1
        if calls > 3:
            request.transport.close()
        return await whole(self, request, *rest)

    monkeypatch.setattr(type(mock), "streamed", breaks)
    with pytest.raises(Unavailable, match="at concurrency 2 broke off"):
        await profiled(mock, concurrency=(2,), fewest_requests=50)
