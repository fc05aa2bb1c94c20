"""The verdict on live replicas: by the median of the rounds, and only if the rounds agree."""

import pytest
from pydantic import ValidationError

from activities.transition.gate.live import judge_live, read_figures
from ipnext.model.gate.live import FEWEST_ANSWERS, ROUNDS, JudgedRound, LiveLatencySpec, ReplicaTimes, RoundFigures

CONCURRENCY = 4
FAST = ReplicaTimes(single=(0.002,) * 20, together=(0.004,) * 5)
NOTHING = ReplicaTimes()


def slower(ratio):
    """The times of FAST, each so many times as long."""
    return ReplicaTimes(single=tuple(t * ratio for t in FAST.single), together=tuple(t * ratio for t in FAST.together))


def rounds(new, serving=None):
    """One round for each of `new`."""
    serving = serving or [FAST] * len(new)
    return [
        JudgedRound(
            part="rank",
            region="us-east",
            hardware="cpu",
            new=read_figures(one, CONCURRENCY),
            serving=read_figures(other, CONCURRENCY),
        )
        for one, other in zip(new, serving, strict=True)
    ]


def limits(**given):
    return LiveLatencySpec.model_validate(given or {"maxP50Ratio": 1.2, "maxP99Ratio": 1.5, "minThroughputRatio": 0.8})


def test_figures_are_quantiles_of_single_requests_and_the_rate_of_groups():
    times = ReplicaTimes(single=tuple(range(1, 101)), together=(2.0, 1.0, 4.0), failed=3, error="503")
    assert read_figures(times, CONCURRENCY) == RoundFigures(
        p50=50, p99=99, throughput=2.0, answered=112, failed=3, error="503"
    )


def test_a_replica_within_all_limits_passes_with_its_figures():
    verdict = judge_live(limits(), rounds([slower(1.1)] * 5))
    assert verdict.outcome == "passed"
    assert verdict.message == (
        "p50 2.2 ms against 2 ms: ratio 1.10 (1.10 to 1.10 in 5 rounds); "
        "p99 2.2 ms against 2 ms: ratio 1.10 (1.10 to 1.10 in 5 rounds); "
        "throughput 909/s against 1e+03/s: ratio 0.91 (0.91 to 0.91 in 5 rounds)"
    )
    assert verdict.evidence["ratios"]["p50"] == [1.1] * 5


@pytest.mark.parametrize(
    ("limit", "words"),
    [
        ({"maxP50Ratio": 1.2}, "p50 4 ms against 2 ms: ratio 2.00 (2.00 to 2.00 in 5 rounds), allowed 1.2"),
        ({"maxP99Ratio": 1.5}, "p99 4 ms against 2 ms: ratio 2.00 (2.00 to 2.00 in 5 rounds), allowed 1.5"),
        ({"minThroughputRatio": 0.8}, "throughput 500/s against 1e+03/s: ratio 0.50"),
    ],
)
def test_each_limit_refuses_alone_and_is_named(limit, words):
    verdict = judge_live(limits(**limit), rounds([slower(2)] * 5))
    assert verdict.outcome == "refused"
    assert verdict.message.startswith(words)
    assert judge_live(limits(**limit), rounds([FAST] * 5)).outcome == "passed"


def test_a_ratio_on_which_the_rounds_disagree_refuses_nothing():
    verdict = judge_live(limits(maxP50Ratio=1.2), rounds([slower(2)] * 3 + [FAST] * 2))
    assert verdict.outcome == "passed"
    assert "ratio 2.00 (1.00 to 2.00 in 5 rounds), allowed 1.2, but the rounds disagree" in verdict.message
    assert judge_live(limits(maxP50Ratio=1.2), rounds([slower(2)] * 4 + [FAST])).outcome == "refused"


def test_load_that_slows_both_replicas_changes_no_ratio():
    pace = [slower(times) for times in (1, 10, 3, 7, 2)]
    assert judge_live(limits(), rounds(pace, pace)).outcome == "passed"


def test_failed_requests_of_the_new_generation_alone_refuse_it():
    failing = FAST.model_copy(update={"failed": 5, "error": "the host answered 500"})
    verdict = judge_live(limits(), rounds([failing] * 5))
    assert verdict.outcome == "refused"
    assert verdict.message == "25 of 225 requests to the new generation failed (the host answered 500)"
    assert judge_live(limits(), rounds([failing] * 5, [failing] * 5)).outcome == "passed"


def test_limits_that_cannot_be_judged_refuse():
    busy = NOTHING.model_copy(update={"failed": 40, "error": "the queue is full"})
    verdict = judge_live(limits(), rounds([FAST] * 5, [busy] * 3 + [FAST] * 2))
    assert verdict.outcome == "refused"
    assert verdict.message == (
        "the limits can't be judged: 2 of 5 rounds had enough answers of both generations, needed: 3 "
        "(the queue is full)"
    )


def test_a_manifest_without_a_limit_is_refused():
    with pytest.raises(ValidationError, match="maxP50Ratio, maxP99Ratio, minThroughputRatio"):
        LiveLatencySpec.model_validate({"requests": 200})


def test_requests_that_make_too_few_groups_for_a_verdict_are_refused():
    with pytest.raises(ValidationError, match="requests: 16 at once need at least 480, got 200"):
        limits(maxP50Ratio=1.2, concurrency=16)
    asked = limits(maxP50Ratio=1.2, concurrency=16, requests=480)
    assert asked.requests // ROUNDS // 2 // asked.concurrency == FEWEST_ANSWERS
