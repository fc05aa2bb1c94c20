"""The figures of how generations answer, from what routers counted."""

import pytest

from ipnext.api.services.generation_stats import answers_of
from ipnext.cli.tables.models import STREAMS, _answers_line, _streams_line
from ipnext.model.deployment.region_state import RegionState
from ipnext.model.deployment.traffic import GenerationTraffic
from ipnext.model.gate.sketch import LATENCY_SECONDS, PredictionSketch, latency_bucket, prediction_bucket


def sketch(value, count):
    bins = {prediction_bucket(value): count}
    return PredictionSketch(answers=count, values=count, total=value * count, squares=value**2 * count, bins=bins)


def traffic(generation, requests, *, ms=10.0, value=0.5, model="m", **more):
    return GenerationTraffic(
        model=model,
        generation=generation,
        requests=requests,
        latency={latency_bucket(ms / 1000): requests},
        predictions={"y": sketch(value, requests)},
        **more,
    )


def region(name, *counts):
    return RegionState(region=name, gateway_url="", traffic=counts)


def test_counts_of_all_regions_add_up_by_generation():
    states = {
        "a": region("a", traffic(1, 90, errors=2), traffic(2, 10, ms=40, non_finite=1)),
        "b": region("b", traffic(1, 10), traffic(9, 5, model="other")),
        "c": None,
    }
    first, second = answers_of("m", 1, states)
    assert (first.generation, first.requests, first.errors, first.non_finite) == (1, 100, 2, 0)
    assert (second.generation, second.requests, second.errors, second.non_finite) == (2, 10, 0, 1)
    top = LATENCY_SECONDS[latency_bucket(0.01)] * 1000
    assert top / 1.2 < first.p50_ms < first.p99_ms < top
    assert second.p50_ms == pytest.approx(40, rel=0.2)


def test_drift_is_told_against_the_serving_generation():
    states = {"a": region("a", traffic(1, 500), traffic(2, 100, value=0.9), traffic(3, 100))}
    first, moved, alike = answers_of("m", 1, states)
    assert (first.compared_with, first.drift) == (None, {})
    assert (moved.compared_with, moved.drift["y"] > 1) == (1, True)
    assert alike.drift["y"] == pytest.approx(0, abs=0.01)
    assert str(_answers_line(moved)[-1]).endswith(" against 1")
    assert _answers_line(first)[-1] == ""


def test_streams_are_told_by_their_first_token_and_the_time_between_two():
    streamed = traffic(2, 50, first_token={latency_bucket(0.2): 50}, token={latency_bucket(0.03): 49})
    plain, found = answers_of("m", 1, {"a": region("a", traffic(1, 50), streamed)})
    assert (plain.ttft_p50_ms, plain.itl_p99_ms) == (None, None)
    assert (found.ttft_p50_ms, found.ttft_p99_ms) == (pytest.approx(200, rel=0.2), pytest.approx(200, rel=0.2))
    assert (found.itl_p50_ms, found.itl_p99_ms) == (pytest.approx(30, rel=0.2), pytest.approx(30, rel=0.2))
    assert len(_streams_line(found)) == len(STREAMS)


def test_a_generation_that_routers_let_go_is_not_told():
    gone = GenerationTraffic(model="m", generation=1, requests=7)
    assert answers_of("m", 2, {"a": region("a", gone)}) == ()
