"""The verdict of a gate: each limit at its bound, too few answers, and looks before the hold ends."""

import pytest
from pydantic import ValidationError

from activities.transition.gate import AGAIN_SECONDS, GateInput, errors_only, judge
from ipnext.errors import InvalidInput
from ipnext.model.gate.comparison import Pair
from ipnext.model.gate.gate import GateSpec, LatencyLimits, RegionTraffic
from ipnext.model.gate.sketch import LATENCY_SECONDS, PredictionSketch, prediction_bucket
from ipnext.model.manifest.manifest import parse_manifest

MS_20 = next(i for i, bound in enumerate(LATENCY_SECONDS) if bound >= 0.02)


def sketch(values: list[float]) -> PredictionSketch:
    bins: dict[int, int] = {}
    for value in values:
        bins[prediction_bucket(value)] = bins.get(prediction_bucket(value), 0) + 1
    squares = sum(value * value for value in values)
    return PredictionSketch(answers=len(values), values=len(values), total=sum(values), squares=squares, bins=bins)


def counted(requests=100, *, errors=0, non_finite=0, slow=0, bucket=MS_20, values=()) -> RegionTraffic:
    """Of so many answers, `slow` in the bucket eight above."""
    return RegionTraffic(
        region="a",
        requests=requests,
        errors=errors,
        non_finite=non_finite,
        latency={b: n for b, n in ((bucket, requests - errors - slow), (bucket + 8, slow)) if n},
        predictions={"score": sketch(list(values))} if values else {},
    )


def verdict(new, old=None, *, early=False, wait_left=0.0, former=1, rate=0.01, **gate):
    asked = GateInput(GateSpec(**gate), rate, early, wait_left, former if old else None)
    return judge(asked, [Pair(new, old or RegionTraffic(region="a"))])


@pytest.mark.parametrize(("bad", "passes"), [(1, True), (2, False)])
@pytest.mark.parametrize("kind", ["errors", "non_finite"])
def test_errors_and_non_finite_answers_may_come_up_to_the_rate(kind, bad, passes):
    found = verdict(counted(**{kind: bad}))
    assert found.ok is passes
    if not passes:
        assert found.message.endswith("of 100: 2.0%, allowed 1.0%")


def test_the_gates_own_error_rate_goes_before_the_rollouts():
    assert verdict(counted(errors=5), max_error_rate=0.05).ok
    assert not verdict(counted(errors=6), max_error_rate=0.05).ok


@pytest.mark.parametrize(("bad", "passes"), [(2, True), (3, False)])
def test_non_finite_answers_have_a_rate_of_their_own(bad, passes):
    found = verdict(counted(non_finite=bad), rate=1.0, max_non_finite_rate=0.02)
    assert found.ok is passes
    assert passes or found.message == "3 non-finite answers of 100: 3.0%, allowed 2.0%"


def test_an_answer_that_is_an_error_and_not_finite_counts_once():
    assert "100.0%" in verdict(counted(10, errors=10, non_finite=10)).message


def test_no_answers_fail_no_gate():
    assert verdict(RegionTraffic(region="a"), rate=0.0).ok


@pytest.mark.parametrize(("share", "at"), [("p50", 0.5), ("p99", 0.99)])
def test_a_latency_may_be_exactly_its_limit(share, at):
    low, high = LATENCY_SECONDS[MS_20 - 1], LATENCY_SECONDS[MS_20]
    exact = (low + (high - low) * at) * 1000
    assert verdict(counted(), max_latency_ms=LatencyLimits(**{share: exact + 1e-9})).ok
    found = verdict(counted(), max_latency_ms=LatencyLimits(**{share: exact - 0.01}))
    assert not found.ok
    assert found.message.startswith(f"{share} ")
    assert "allowed" in found.message


def test_only_a_p99_that_is_slower_than_allowed_trips_a_ratio():
    old = counted(1000, bucket=MS_20)
    assert verdict(counted(bucket=MS_20 + 4), old, max_latency_ratio=2.0001).ok
    found = verdict(counted(bucket=MS_20 + 4), old, former=3, max_latency_ratio=1.99)
    assert not found.ok
    assert "of generation 3: ratio 2.00, allowed 1.99; 100 answers" in found.message


def spread(count, *, shift=0.0, times=1.0):
    """Evenly from 0.3 to 0.7, moved."""
    return [(0.3 + 0.4 * (i % 97) / 96) * times + shift for i in range(count)]


def test_predictions_that_are_moved_scaled_or_constant_trip_drift_and_equal_ones_do_not():
    old = counted(1000, values=spread(1000))
    assert verdict(counted(400, values=spread(400)), old, max_drift=0.1).ok
    for values in (spread(400, shift=0.3), spread(400, times=2), [0.5] * 400):
        found = verdict(counted(400, values=values), old, max_drift=0.25)
        assert not found.ok
        assert found.message.startswith("drift of output 'score' ")
        assert "of generation 1), allowed 0.25 beside the" in found.message


def test_a_mean_may_shift_by_exactly_its_limit_and_what_chance_explains():
    old, new = counted(1000, values=spread(1000)), counted(400, values=spread(400, shift=0.05))
    told = verdict(new, old, max_mean_shift=9.0).message
    size = float(told.split("shifted by ")[1].split()[0])
    chance = 3.09 * (1 / 1000 + 1 / 400) ** 0.5
    assert verdict(new, old, max_mean_shift=size - chance + 0.01).ok
    assert not verdict(new, old, max_mean_shift=size - chance - 0.01).ok


@pytest.mark.parametrize(("shift", "passes"), [(0.0, True), (3.0, False)])
def test_predictions_are_compared_over_all_regions_if_both_answered_in_none(shift, passes):
    """A model moves to another region: the former generation answers in the one, the new one in the other."""
    nothing, new, old = counted(0), counted(400, values=spread(400, shift=shift)), counted(400, values=spread(400))
    asked = GateInput(GateSpec(max_drift=0.25, max_mean_shift=1.0), 0.01, former=1)

    assert judge(asked, [Pair(new, nothing), Pair(nothing, old)]).ok is passes


def test_a_region_in_which_one_generation_answered_is_left_out_if_both_did_in_another():
    both, elsewhere = counted(400, values=spread(400)), counted(400, values=spread(400, shift=3.0))
    asked = GateInput(GateSpec(max_drift=0.25), 0.01, former=1)

    assert judge(asked, [Pair(both, both), Pair(elsewhere, counted(0))]).ok


def test_drift_is_judged_on_the_outputs_named():
    old, new = counted(1000, values=spread(1000)), counted(400, values=spread(400, shift=3))
    assert verdict(new, old, max_drift=0.1, outputs=("other",)).ok
    assert not verdict(new, old, max_drift=0.1, outputs=("score",)).ok


def test_a_wave_in_which_the_former_generation_answers_nothing_compares_nothing():
    assert verdict(counted(bucket=MS_20 + 40), max_latency_ratio=1.1, max_drift=0.1).ok


def test_all_limits_that_are_not_kept_are_told():
    found = verdict(counted(errors=5, bucket=MS_20 + 8), max_latency_ms=LatencyLimits(p50=1, p99=1))
    assert [part.split()[0] for part in found.message.split("; ")] == ["5", "p50", "100", "p99", "100"]


@pytest.mark.parametrize(
    ("limits", "needed"),
    [({}, 0), ({"max_drift": 1.0}, 100), ({"max_latency_ms": LatencyLimits(p99=5)}, 100), ({"min_requests": 7}, 7)],
)
def test_latency_and_drift_need_a_hundred_answers_unless_the_manifest_says(limits, needed):
    assert GateSpec(**limits).needed_answers == needed


def test_a_gate_waits_for_enough_answers_and_then_does_as_it_is_told():
    limits = {"min_requests": 50}
    waits = verdict(counted(49), wait_left=30, **limits)
    assert (waits.ok, waits.again_seconds) == (True, AGAIN_SECONDS)
    assert verdict(counted(49), wait_left=0.5, **limits).again_seconds == 0.5
    passes, fails = (verdict(counted(49), **limits, on_too_few=end) for end in ("pass", "fail"))
    assert (passes.ok, passes.again_seconds, fails.ok) == (True, 0, False)
    assert "too few to judge, 50 are needed; onTooFew is fail" in fails.message
    assert verdict(counted(50), wait_left=30, **limits).again_seconds == 0
    assert verdict(counted(49), wait_left=3000, wait_seconds=3000, **limits).again_seconds == 100


def test_a_gate_waits_for_answers_of_the_former_generation_too():
    found = verdict(counted(200), counted(20), wait_left=30, max_latency_ratio=1.5)
    assert (found.ok, found.again_seconds > 0) == (True, True)


def test_errors_that_are_too_many_whatever_comes_need_no_further_answers():
    assert verdict(counted(5, errors=1), wait_left=30, min_requests=100).again_seconds > 0
    assert not verdict(counted(5, errors=2), wait_left=30, min_requests=100).ok


def test_while_the_hold_lasts_only_what_chance_hardly_explains_ends_it():
    early = {"early": True}
    assert verdict(counted(), **early).ok
    assert verdict(counted(errors=2), **early).ok
    assert not verdict(counted(errors=12), **early).ok
    assert verdict(counted(19, errors=19), **early).ok, "too few answers"
    assert verdict(counted(99, errors=50), **early, min_requests=100).ok, "too few answers"
    assert verdict(counted(1000, slow=15), **early, max_latency_ms=LatencyLimits(p99=30)).ok
    assert not verdict(counted(1000, slow=60), **early, max_latency_ms=LatencyLimits(p99=30)).ok


def test_the_same_look_gives_the_same_verdict():
    new, old = counted(400, values=spread(400, shift=1)), counted(900, values=spread(900))
    assert verdict(new, old, max_drift=0.2) == verdict(new, old, max_drift=0.2)


def test_a_rollback_is_asked_for_errors_alone():
    gate = GateSpec(max_drift=0.1, max_error_rate=0.2, max_latency_ms=LatencyLimits(p99=1), min_requests=1000)
    asked = errors_only(0.01, gate)
    assert (asked.gate.needed_answers, asked.error_rate, asked.former) == (0, 0.2, None)
    assert judge(asked, [Pair(counted(bucket=70), counted())]).ok


@pytest.mark.parametrize(
    ("gate", "words"),
    [
        ({"maxErrorRate": 1.5}, "spec.rollout.gate.maxErrorRate"),
        ({"maxLatencyMs": {"p99": 0}}, "spec.rollout.gate.maxLatencyMs.p99"),
        ({"maxLatencyMs": {"p95": 10}}, "spec.rollout.gate.maxLatencyMs.p95"),
        ({"onTooFew": "wait"}, "spec.rollout.gate.onTooFew"),
        ({"maxDrift": -1}, "spec.rollout.gate.maxDrift"),
    ],
)
def test_a_wrong_gate_is_refused_by_its_field(kit, gate, words):
    with pytest.raises((InvalidInput, ValidationError), match=words):
        parse_manifest(kit.manifest("ranker", rollout={"gate": gate}))


def test_streams_are_judged_by_their_first_piece_and_by_the_time_between_two():
    """The whole answer may take as long as it likes."""
    streamed = counted(bucket=MS_20 + 30).model_copy(
        update={"first_token": {MS_20: 97, MS_20 + 12: 3}, "token": {MS_20 - 8: 100}}
    )

    assert verdict(streamed, max_first_token_ms=LatencyLimits(p50=25), max_token_ms=LatencyLimits(p99=8)).ok
    slow = verdict(streamed, max_first_token_ms=LatencyLimits(p99=80))
    assert not slow.ok
    assert slow.message.startswith("first token p99 1")
    assert slow.message.endswith("allowed 80 ms; 100 answers")
    assert verdict(streamed, max_token_ms=LatencyLimits(p50=1)).message.startswith("between tokens p50")
    assert verdict(counted(), max_token_ms=LatencyLimits(p50=1)).ok


def test_limits_on_streams_need_a_hundred_answers():
    assert GateSpec(max_first_token_ms=LatencyLimits(p99=5)).needed_answers == 100
    assert GateSpec(max_token_ms=LatencyLimits(p50=5)).needed_answers == 100
