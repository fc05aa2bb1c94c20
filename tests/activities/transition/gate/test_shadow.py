"""The verdict on a shadow: passed, refused or too few, with the figures in words."""

import pytest

from activities.transition.gate.shadow import judge_shadow
from ipnext.model.gate.shadow import OutputDifference, ShadowComparison, ShadowLimits
from ipnext.model.gate.sketch import latency_bucket
from serving.metrics.answer_differences import AnswerDifference, TensorDifference
from serving.metrics.shadow_counts import ShadowCounts


def compared(count, *, absolute=0.0, relative=0.0, overlap=None, seconds=0.01, shadow_seconds=0.01, mismatches=()):
    """A router's comparison of as many requests that are all alike."""
    counts = ShadowCounts("m", 2, 0)
    answer = AnswerDifference({"score": TensorDifference(absolute, relative, overlap)}, frozenset(mismatches))
    for _ in range(count):
        counts.note_compared(answer, seconds=seconds, shadow_seconds=shadow_seconds)
    return counts.comparison


def failing(count):
    return ShadowComparison(model="m", generation=2, failures={"DeadlineExceeded": count})


def limits(**given):
    return ShadowLimits.model_validate({"minRequests": 100} | given)


def test_a_shadow_within_all_limits_passes_with_its_figures():
    verdict = judge_shadow(
        limits(maxDifference={"absolute": 0.1, "relative": 0.1}, maxLatencyRatio={"p50": 1.5, "p99": 1.5}),
        [compared(60, absolute=0.01, relative=0.02), compared(60, absolute=0.01, relative=0.02)],
    )
    assert verdict.outcome == "passed"
    assert verdict.message.startswith("120 answers of generation 2 compared, 0 failed and 0 mismatched, p50 ")
    assert "output 'score' differs by 0.00998, relative 0.0251" in verdict.message


def test_equal_answers_are_said_to_differ_by_nothing():
    assert "differs by nothing, relative nothing" in judge_shadow(limits(), [compared(100)]).message


@pytest.mark.parametrize(
    ("given", "facts", "words"),
    [
        ({"maxDifference": {"absolute": 0.1}}, {"absolute": 0.2}, "absolute difference of output 'score' 0.2"),
        ({"maxDifference": {"relative": 0.1}}, {"relative": 0.2}, "relative difference of output 'score' 0.2"),
        (
            {"maxDifference": {"absolute": 999_999}},
            {"absolute": float("inf")},
            "absolute difference of output 'score' a number that is not finite, or as much",
        ),
        ({"minOverlap": 0.9}, {"overlap": 0.8}, "80.0% of the best rows of output 'score' in common, needed 90.0%"),
        ({"maxLatencyRatio": {"p50": 1.5}}, {"shadow_seconds": 0.02}, "p50 "),
        ({"maxLatencyRatio": {"p99": 1.5}}, {"shadow_seconds": 0.02}, "p99 "),
        ({}, {"mismatches": ("shape",)}, "0 failed and 100 mismatched (shape 100) of 100 requests: 100.0%"),
    ],
)
def test_each_limit_refuses_alone_and_is_named(given, facts, words):
    verdict = judge_shadow(limits(**given), [compared(100, **facts)])
    assert verdict.outcome == "refused"
    assert verdict.message.startswith(words)
    assert judge_shadow(limits(**given), [compared(100, overlap=1.0)]).outcome == "passed"


def test_a_quantile_leaves_out_the_few_beyond_it():
    found = [compared(95, absolute=0.01), compared(5, absolute=10.0)]
    for quantile, outcome in ((0.9, "passed"), (0.96, "refused"), (1.0, "refused")):
        asked = limits(maxDifference={"absolute": 0.1, "quantile": quantile})
        assert judge_shadow(asked, found).outcome == outcome


def test_too_few_answers_decide_nothing_and_say_what_was_dropped():
    few = compared(20, absolute=10.0).model_copy(update={"dropped": {"queue": 9}})
    verdict = judge_shadow(limits(maxDifference={"absolute": 0.1}), [few])
    assert verdict.outcome == "too_few"
    assert "9 requests not mirrored (queue 9)" in verdict.message
    assert verdict.message.endswith("too few to judge, 100 are needed")
    assert judge_shadow(limits(), []).message == "no region compares yet; 100 requests are needed"


def test_errors_that_are_too_many_whatever_still_comes_refuse_at_once():
    assert judge_shadow(limits(maxErrors=0.05), [compared(10), failing(5)]).outcome == "too_few"
    verdict = judge_shadow(limits(maxErrors=0.05), [compared(10), failing(6)])
    assert verdict.outcome == "refused"
    assert verdict.message == "6 failed (DeadlineExceeded 6) and 0 mismatched of 100 requests: 6.0%, allowed 5.0%"


def test_failures_count_beside_compared_answers():
    assert judge_shadow(limits(maxErrors=0.1), [compared(90), failing(10)]).outcome == "passed"
    assert judge_shadow(limits(maxErrors=0.1), [compared(89), failing(11)]).outcome == "refused"


def test_comparisons_of_several_shadows_are_not_judged_as_one():
    with pytest.raises(ValueError, match="several shadows"):
        judge_shadow(limits(), [compared(1), compared(1).model_copy(update={"seed": 1})])


def test_an_output_without_scores_has_no_overlap_to_judge():
    plain = compared(100).model_copy(update={"outputs": {"ids": OutputDifference(absolute={0: 100})}})
    assert judge_shadow(limits(minOverlap=1.0), [plain]).outcome == "passed"
    assert latency_bucket(0.01) in plain.latency
