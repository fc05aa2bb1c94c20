"""A curve, and the throughput at a latency target that is read off it."""

from datetime import UTC, datetime

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from ipnext.errors import InvalidInput
from ipnext.model.manifest.derived.profiled import apply_profiles, check_measured, throughputs
from ipnext.model.manifest.parser import parse_manifest
from ipnext.model.registry.profile import (
    Conditions,
    LatencyTarget,
    LoadStep,
    Profile,
    StoredProfile,
    architecture_of,
    at_target,
    rising,
)
from ipnext.model.registry.registry import ArtifactFile, Signature, SnapshotManifest


def step(concurrency, tokens, ttft, itl=None):
    return LoadStep(
        concurrency=concurrency,
        requests=10,
        seconds=1,
        tokens_per_second=tokens,
        requests_per_second=tokens / 100,
        ttft_p50_ms=ttft / 2,
        ttft_p99_ms=ttft,
        itl_p50_ms=itl,
        itl_p99_ms=itl,
    )


CURVE = (step(1, 100, 20, 5), step(2, 180, 30, 6), step(4, 300, 70, 10), step(8, 320, 270, 18))


@pytest.mark.parametrize(
    ("target", "tokens", "concurrency", "bounded"),
    [
        ({"ttft_ms": 20}, 100, 1, True),
        ({"ttft_ms": 25}, 140, 1.5, True),
        ({"ttft_ms": 50}, 240, 3, True),
        ({"ttft_ms": 170}, 310, 6, True),
        ({"ttft_ms": 270}, 320, 8, False),
        ({"ttft_ms": 1e6}, 320, 8, False),
        ({"itl_ms": 8}, 240, 3, True),
        ({"ttft_ms": 170, "itl_ms": 5.5}, 140, 1.5, True),
        ({}, 320, 8, False),
    ],
)
def test_between_measured_points_lies_a_straight_line_and_beyond_them_nothing(target, tokens, concurrency, bounded):
    found = at_target(CURVE, LatencyTarget(**target))
    assert found.met
    assert (found.tokens_per_second, found.concurrency, found.bounded) == (
        pytest.approx(tokens),
        pytest.approx(concurrency),
        bounded,
    )
    assert found.rate("requests/s") == pytest.approx(tokens / 100)


def test_a_target_below_the_lowest_load_is_not_met_and_the_figures_are_those_of_that_load():
    found = at_target(CURVE, LatencyTarget(ttft_ms=19.9))
    assert (found.met, found.tokens_per_second, found.concurrency) == (False, 100, 1)
    assert not at_target(CURVE, LatencyTarget(ttft_ms=100, itl_ms=4)).met


def test_a_load_at_which_less_is_done_is_never_chosen():
    curve = (step(1, 100, 20), step(2, 180, 30), step(4, 90, 40))
    assert at_target(curve, LatencyTarget(ttft_ms=40)).tokens_per_second == 180
    assert at_target(curve, LatencyTarget(ttft_ms=35)).concurrency == 2


def test_a_latency_that_falls_while_the_load_rises_is_noise():
    curve = (step(1, 100, 50), step(2, 180, 30), step(4, 300, 60))
    assert not at_target(curve, LatencyTarget(ttft_ms=39)).met
    assert at_target(curve, LatencyTarget(ttft_ms=40)).tokens_per_second == 180
    assert at_target(curve, LatencyTarget(ttft_ms=50)).tokens_per_second == 240


@pytest.mark.parametrize(
    ("values", "weights", "expected"),
    [
        ([1, 2, 2, 5], [1, 1, 1, 1], [1, 2, 2, 5]),
        ([3, 1], [1, 1], [2, 2]),
        ([3, 1], [1, 3], [1.5, 1.5]),
        ([1, 4, 3, 2, 9], [1, 1, 1, 1, 1], [1, 3, 3, 3, 9]),
        ([5, 4, 3], [1, 1, 1], [4, 4, 4]),
        ([], [], []),
    ],
)
def test_values_that_fall_share_their_weighted_mean(values, weights, expected):
    assert rising(values, weights) == expected


FIGURES = st.floats(0.1, 1000)


@given(st.lists(st.tuples(FIGURES, FIGURES, FIGURES), min_size=1, max_size=6), FIGURES, FIGURES, FIGURES)
def test_a_laxer_target_never_gives_less_and_nothing_exceeds_what_was_measured(figures, one, other, itl):
    curve = [step(i + 1, *found) for i, found in enumerate(figures)]
    low, high = (at_target(curve, LatencyTarget(ttft_ms=ms, itl_ms=itl)) for ms in sorted((one, other)))
    assert low.met <= high.met
    if low.met:
        assert low.tokens_per_second <= high.tokens_per_second * (1 + 1e-9)
    assert high.tokens_per_second <= max(tokens for tokens, _, _ in figures) * (1 + 1e-9)


def test_steps_that_do_not_rise_and_times_without_a_zone_are_refused():
    fields = {"hardware": "l4", "conditions": Conditions(prompt_tokens=8, output_tokens=8)}
    with pytest.raises(ValidationError, match=r"concurrency must rise from step to step, got \[2, 1\]"):
        Profile(**fields, steps=(CURVE[1], CURVE[0]), measured_at=datetime.now(UTC))
    with pytest.raises(ValidationError, match="needs a time zone"):
        Profile(**fields, steps=CURVE, measured_at=datetime(2026, 1, 1))  # noqa: DTZ001 - the point


# manifests


def manifest(option, demand=None, **part):
    given = {"name": "llm", "engine": "vllm", "hardware": [{"kind": "l4", "units": 1, **option}], **part}
    header = {"apiVersion": "ipnext/v1", "kind": "Model", "metadata": {"name": "chat", "owner": "o"}}
    demand = demand or {"tokensPerSecond": 1000}
    return parse_manifest(header | {"spec": {"parts": [given], "demand": [{"region": "us", **demand}]}})


def stored(steps=CURVE):
    conditions = Conditions(prompt_tokens=8, output_tokens=100)
    names = {"model": "chat", "part": "llm", "snapshot": 3, "hardware": "l4"}
    return StoredProfile(**names, steps=steps, conditions=conditions, measured_at=datetime.now(UTC))


MEASURED = {("llm", "l4"): stored()}


@pytest.mark.parametrize(
    ("option", "demand", "part", "rate"),
    [
        ({"profile": True}, None, {"latencyTarget": {"ttftMs": 50}}, 240),
        ({"profile": True, "tokensPerSecond": 7}, None, {}, 320),
        ({"profile": True}, {"qps": 1}, {"latencyTarget": {"itlMs": 8}}, 2.4),
        ({"tokensPerSecond": 7}, None, {}, 7),
        ({"profile": False, "tokensPerSecond": 7}, None, {}, 7),
    ],
)
def test_a_measured_throughput_stands_in_the_model_s_unit_where_it_is_asked_for(option, demand, part, rate):
    given = manifest(option, demand, **part)
    found = apply_profiles(given, MEASURED).spec.parts[0].hardware[0]
    assert found.throughput == pytest.approx(rate)
    assert found.unit == given.spec.unit


def test_the_declared_number_holds_until_there_is_a_profile():
    given = manifest({"profile": True, "tokensPerSecond": 7})
    assert apply_profiles(given, {}).spec.parts[0].hardware[0].throughput == 7
    check_measured(given, {})
    [line] = throughputs(given, {})
    assert (line.rate, line.unit, line.snapshot) == (7, "tokens/s", None)
    [line] = throughputs(given, MEASURED)
    assert (line.rate, line.snapshot, line.met) == (320, 3, True)


def test_throughput_that_nobody_knows_is_refused_with_the_command_that_measures_it():
    given = manifest({"profile": True})
    with pytest.raises(InvalidInput) as refused:
        check_measured(given, {})
    assert refused.value.field == "spec.parts.0.hardware.0"
    for said in ("'llm' on 'l4'", "tokensPerSecond", "`ipnext profile chat --part llm --hardware l4`"):
        assert said in refused.value.message
    with pytest.raises(InvalidInput, match="no profile is there"):
        _ = given.spec.parts[0].hardware[0].throughput


def test_a_part_that_was_measured_to_miss_its_target_is_refused_with_what_was_seen():
    given = manifest({"profile": True}, latencyTarget={"ttftMs": 10, "itlMs": 50})
    with pytest.raises(InvalidInput, match=r"TTFT <= 10 ms, ITL <= 50 ms.*at concurrency 1 TTFT was 20 ms, ITL 5 ms"):
        check_measured(given, MEASURED)
    [line] = throughputs(given, MEASURED)
    assert (line.rate, line.met) == (100, False)


# snapshots


def snapshot(config="c", size=4, name="model.safetensors", weights="w"):
    files = {"config.json": (config, 2), name: (weights, size)}
    made = [ArtifactFile(path=p, sha256=f"{ord(s):064x}", size_bytes=n) for p, (s, n) in files.items()]
    return SnapshotManifest(engine="vllm", signature=Signature(inputs=(), outputs=()), files=tuple(made))


def test_snapshots_of_one_architecture_differ_in_the_values_of_their_weights_alone():
    one = architecture_of(snapshot())
    assert architecture_of(snapshot(weights="x")) == one
    others = {architecture_of(s) for s in (snapshot(config="d"), snapshot(size=5), snapshot(name="b.safetensors"))}
    assert len(others) == 3
    assert one not in others
