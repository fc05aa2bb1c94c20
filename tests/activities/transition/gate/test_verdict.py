"""The verdict of a gate: each limit at its bound, too few answers, and looks before the hold ends."""

import numpy as np
import pytest
from pydantic import ValidationError

from activities.transition.gate.verdict import AGAIN_SECONDS, GateInput, errors_only, judge
from ipnext.errors import InvalidInput
from ipnext.model.deployment.route_table import RouteShare
from ipnext.model.gate.comparison import Pair
from ipnext.model.gate.gate import GateSpec, LatencyLimits, RegionTraffic
from ipnext.model.gate.sketch import LATENCY_SECONDS, PredictionSketch, prediction_bucket
from ipnext.model.manifest.parser import parse_manifest

NEW = 7

MS_20 = next(i for i, bound in enumerate(LATENCY_SECONDS) if bound >= 0.02)


def sketch(values: list[float]) -> PredictionSketch:
    bins: dict[int, int] = {}
    for value in values:
        bins[prediction_bucket(value)] = bins.get(prediction_bucket(value), 0) + 1
    squares = sum(value * value for value in values)
    return PredictionSketch(answers=len(values), values=len(values), total=sum(values), squares=squares, bins=bins)


def counted(requests=100, *, errors=0, non_finite=0, slow=0, bucket=MS_20, values=(), gateway="a", **more):
    """Of so many answers, `slow` in the bucket eight above."""
    return RegionTraffic(
        region="a",
        gateway=gateway,
        requests=requests,
        errors=errors,
        non_finite=non_finite,
        failed=min(requests, errors + non_finite),
        latency={b: n for b, n in ((bucket, requests - errors - slow), (bucket + 8, slow)) if n},
        predictions={"score": sketch(list(values))} if values else {},
        **more,
    )


def weights(of_new=0.1, *, to="a", former=1):
    """By this probability the gateway of `a` sends a request to the new generation."""
    shares = ((to, NEW, of_new), ("a", former, 1 - of_new))
    return {"a": tuple(RouteShare(to=region, generation=number, fraction=part) for region, number, part in shares)}


def verdict(new, old=None, *, early=False, wait_left=0.0, former=1, rate=0.01, share=0.1, **gate):
    """`old`: the answers of generation `former` over the same time; none given: as many as its share, all good ones."""
    if old is None:
        old = counted(int(new.requests / share * (1 - share))) if 0 < share < 1 else counted(0)
    shares = (weights(share, former=former),)
    asked = GateInput(GateSpec(**gate), rate, early, wait_left, NEW, former if share < 1 else None, shares)
    return judge(asked, [Pair(new, old)])


@pytest.mark.parametrize(("bad", "passes"), [(10, True), (11, False)])
@pytest.mark.parametrize("kind", ["errors", "non_finite"])
def test_errors_and_non_finite_answers_may_come_up_to_the_rate(kind, bad, passes):
    found = verdict(counted(**{kind: bad}), rate=0.1)
    assert found.ok is passes
    if not passes:
        assert found.message.endswith("of 100: 11.0%, allowed 10.0%")


def test_the_gates_own_error_rate_goes_before_the_rollouts():
    assert verdict(counted(errors=5), max_error_rate=0.05).ok
    assert not verdict(counted(errors=6), max_error_rate=0.05).ok


@pytest.mark.parametrize(("bad", "passes"), [(4, True), (5, False)])
def test_non_finite_answers_have_a_rate_of_their_own(bad, passes):
    found = verdict(counted(non_finite=bad), rate=1.0, max_non_finite_rate=0.04)
    assert found.ok is passes
    assert passes or found.message == "5 non-finite answers of 100: 5.0%, allowed 4.0%"


def test_an_answer_that_is_an_error_and_not_finite_counts_once():
    assert "100.0%" in verdict(counted(10, errors=10, non_finite=10)).message


def test_no_answers_fail_no_gate():
    assert verdict(RegionTraffic(region="a"), rate=0.0).ok


@pytest.mark.parametrize(("share", "at"), [("p50", 0.5), ("p99", 0.99)])
def test_a_latency_may_be_exactly_its_limit(share, at):
    low, high = LATENCY_SECONDS[MS_20 - 1], LATENCY_SECONDS[MS_20]
    exact = (low + (high - low) * at) * 1000
    fast = counted(900, bucket=MS_20 - 20)
    assert verdict(counted(), fast, max_latency_ms=LatencyLimits(**{share: exact + 1e-9})).ok
    limit = (low + (high - low) * (at - 0.05)) * 1000
    found = verdict(counted(), fast, max_latency_ms=LatencyLimits(**{share: limit}))
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
    assert verdict(counted(bucket=MS_20 + 40), share=1.0, max_latency_ratio=1.1, max_drift=0.1).ok


def test_all_limits_that_are_not_kept_are_told():
    fast = counted(900, bucket=2)
    found = verdict(counted(errors=5, bucket=MS_20 + 8), fast, max_latency_ms=LatencyLimits(p50=1, p99=1))
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
    assert verdict(counted(5, errors=4), wait_left=30, rate=0.04, min_requests=100).again_seconds > 0
    assert not verdict(counted(5, errors=5), wait_left=30, rate=0.04, min_requests=100).ok


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
    asked = errors_only(GateInput(gate, 0.01, wait_left=30, generation=NEW, former=1, shares=(weights(),)))
    assert (asked.gate.needed_answers, asked.error_rate, asked.wait_left) == (0, 0.2, 0)
    assert judge(asked, [Pair(counted(bucket=70), counted())]).ok
    assert not judge(asked, [Pair(counted(errors=30), counted())]).ok


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

    fast = counted(900).model_copy(update={"first_token": {2: 900}, "token": {2: 900}})
    assert verdict(streamed, fast, max_first_token_ms=LatencyLimits(p50=25), max_token_ms=LatencyLimits(p99=8)).ok
    streamed = streamed.model_copy(update={"first_token": {MS_20: 95, MS_20 + 12: 5}})
    slow = verdict(streamed, fast, max_first_token_ms=LatencyLimits(p99=80))
    assert not slow.ok
    assert slow.message.startswith("first token p99 1")
    assert slow.message.endswith("allowed 80 ms; 100 answers")
    assert verdict(streamed, fast, max_token_ms=LatencyLimits(p50=1)).message.startswith("between tokens p50")
    assert verdict(counted(), max_token_ms=LatencyLimits(p50=1)).ok


def test_limits_on_streams_need_a_hundred_answers():
    assert GateSpec(max_first_token_ms=LatencyLimits(p99=5)).needed_answers == 100
    assert GateSpec(max_token_ms=LatencyLimits(p50=5)).needed_answers == 100


# what a client sends fails no gate

ALL_LIMITS = {"max_non_finite_rate": 0.01, "min_requests": 0}


def test_requests_that_fail_with_either_generation_fail_no_gate():
    """A client sends what no generation can answer: 65 errors of 65."""
    attacked = verdict(counted(65, errors=65), counted(585, errors=585))
    assert attacked.ok
    assert attacked.again_seconds == 0
    assert "65 answers, 65 errors" in attacked.message


@pytest.mark.parametrize("share", [0.02, 0.1, 0.5, 0.9, 0.98])
def test_a_client_fails_a_gate_less_often_than_once_in_a_thousand(share):
    """It looks after each answer, and stops once the counts suit it; its requests fail or are not finite."""
    random = np.random.default_rng(1)
    failed = 0
    for _ in range(400):
        drawn = random.random(300) < share
        new = drawn.cumsum()
        ahead = new / share - (np.arange(300) + 1)
        best = int(ahead.argmax())
        mine, others = int(new[best]), best + 1 - int(new[best])
        found = verdict(counted(mine, non_finite=mine), counted(others, non_finite=others), share=share, **ALL_LIMITS)
        failed += not found.ok
    assert failed <= 2


def test_a_candidate_that_fails_all_requests_fails_whatever_a_client_sends_besides():
    for errors in (0, 45, 450):
        broken = counted(100 + errors // 9, errors=100 + errors // 9)
        found = verdict(broken, counted(900 + errors, errors=errors))
        assert not found.ok, errors


@pytest.mark.parametrize(("share", "needed"), [(0.1, 4), (0.4, 9), (0.5, 12)])
def test_so_many_errors_in_a_row_are_no_chance_beside_a_generation_without_any(share, needed):
    waits = verdict(counted(needed - 1, errors=needed - 1), share=share, wait_left=30)
    assert (waits.ok, waits.again_seconds > 0) == (True, True)
    assert not verdict(counted(needed, errors=needed), share=share, wait_left=30).ok


def test_what_chance_may_make_passes_once_the_wait_is_over():
    found = verdict(counted(3, errors=3))
    assert found.ok
    assert found.message.endswith("100.0%, allowed 1.0%, which chance may make beside generation 1")


def test_only_the_surplus_counts_for_the_rate():
    """Both fail 20 % of a client's requests; of the others the candidate fails 0.5 % more."""
    assert verdict(counted(10_000, errors=2_050), counted(90_000, errors=18_000)).ok
    assert not verdict(counted(10_000, errors=2_500), counted(90_000, errors=18_000)).ok


def test_without_another_generation_beside_it_no_error_decides():
    found = verdict(counted(65, errors=64), share=1.0, wait_left=30, **ALL_LIMITS)
    assert (found.ok, found.again_seconds) == (True, 0)
    assert "and no other generation answers the same clients" in found.message


@pytest.mark.parametrize("early", [False, True])
@pytest.mark.parametrize("bad", [{"errors": 20}, {"non_finite": 20}])
def test_a_generation_alone_that_gives_no_good_answer_fails(early, bad):
    found = verdict(counted(20, **bad), share=1.0, early=early)
    assert not found.ok
    assert found.message.endswith("none of them got a good answer")
    assert verdict(counted(21, **bad), share=1.0, early=early).ok
    assert verdict(counted(19, **dict.fromkeys(bad, 19)), share=1.0, early=early).ok


def test_a_former_generation_that_answers_only_at_other_gateways_is_no_comparison():
    """A client of gateway a fails its requests; all users of gateway b are on the former generation, and well."""
    pairs = [Pair(counted(65, errors=65), counted(0)), Pair(counted(0, gateway="b"), counted(900, gateway="b"))]
    shares = {"a": (RouteShare(to="a", generation=NEW, fraction=1.0),)}
    shares["b"] = (RouteShare(to="a", generation=1, fraction=1.0),)
    assert judge(GateInput(GateSpec(), 0.01, generation=NEW, former=1, shares=(shares,)), pairs).ok


def test_each_gateway_is_compared_by_its_own_weights():
    """A client of gateway a, which sends half of its requests to the candidate, fails them all; b's users are many."""
    shares = {
        "a": tuple(RouteShare(to="a", generation=g, fraction=0.5) for g in (NEW, 1)),
        "b": (
            RouteShare(to="a", generation=NEW, fraction=0.01),
            RouteShare(to="a", generation=1, fraction=0.99),
        ),
    }
    asked = GateInput(GateSpec(), 0.01, generation=NEW, former=1, shares=(shares,))
    attack = Pair(counted(50, errors=50), counted(50, errors=50))
    assert judge(asked, [attack, Pair(counted(10, gateway="b"), counted(990, gateway="b"))]).ok
    worse = Pair(counted(50, errors=50), counted(50))
    assert not judge(asked, [worse, Pair(counted(10, gateway="b"), counted(990, gateway="b"))]).ok


def test_the_generations_of_a_gateway_are_compared_over_all_regions():
    """The candidate answers in region b, the former one in region a."""
    new = counted(50, errors=50).model_copy(update={"region": "b"})
    asked = GateInput(GateSpec(), 0.01, generation=NEW, former=1, shares=(weights(to="b"),))
    for errors, passes in ((0, False), (450, True)):
        pairs = [Pair(new, counted(0)), Pair(counted(0), counted(450, errors=errors))]
        assert judge(asked, pairs).ok is passes


def test_counts_that_a_restart_lost_are_no_advantage_of_the_former_generation():
    """Its region's router restarted: what it had failed is not known any more."""
    new = counted(50, errors=50).model_copy(update={"region": "b"})
    asked = GateInput(GateSpec(), 0.01, generation=NEW, former=1, shares=(weights(to="b"),))
    assert judge(asked, [Pair(new, counted(0)), Pair(counted(0), counted(3), restarted=True)]).ok


@pytest.mark.parametrize("ended", ["withdrawn", "under_way"])
def test_requests_that_a_client_ended_before_an_answer_are_no_good_ones(ended):
    """It gives up those that take long: with the former generation, which fails them later."""
    assert verdict(counted(65, errors=65), counted(10, **{ended: 585})).ok
    assert not verdict(counted(65, errors=65), counted(585)).ok


@pytest.mark.parametrize(("new", "old"), [("failed", "broken"), ("broken", "failed")])
def test_it_makes_no_difference_whether_a_failed_answer_had_begun(new, old):
    plain = counted(65).model_copy(update={new: 65})
    assert verdict(plain, counted(585, **{old: 585}) if old == "broken" else counted(585, errors=585)).ok


def test_streams_that_a_client_left_are_no_whole_ones():
    """It reads in the headers which generation answers, and leaves those of the former one."""
    broken = counted(65, broken=65)
    assert verdict(broken, counted(585, left=585)).ok
    assert not verdict(broken, counted(585)).ok


def test_weights_that_requests_refute_do_not_count():
    """By the table a tenth comes to the candidate; by the requests nearly all."""
    assert verdict(counted(500, errors=40), counted(5)).ok


def test_a_slow_generation_fails_although_the_former_one_that_shares_its_hosts_becomes_slow_too():
    slow = counted(65, bucket=MS_20 + 20)
    limit = {"max_latency_ms": LatencyLimits(p50=150), "min_requests": 0}
    assert not verdict(slow, counted(98, bucket=MS_20 + 20), share=0.4, **limit).ok
