"""What was counted since the traffic moved: restarts, regions, and a size that a history bears."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from activities.transition.gate.window import MAX_WINDOW_BYTES, count_since, former_generation, open_window, traffic_of
from ipnext.model.deployment.region_state import RegionState
from ipnext.model.deployment.traffic import ChosenTraffic, GenerationTraffic
from ipnext.model.gate.comparison import latencies, predictions
from ipnext.model.gate.gate import GateWindow, RegionTraffic
from ipnext.model.gate.sketch import PREDICTION_BOUNDS, PredictionSketch, prediction_bucket
from ipnext.model.planning.transition import FleetState, GenerationShare, Transition


def sketch(*values: float, answers: int | None = None) -> PredictionSketch:
    bins: dict[int, int] = {}
    for value in values:
        bins[prediction_bucket(value)] = bins.get(prediction_bucket(value), 0) + 1
    return PredictionSketch(
        answers=len(values) if answers is None else answers,
        values=len(values),
        total=sum(values),
        squares=sum(value * value for value in values),
        bins=bins,
    )


def counts(region="a", requests=0, **more) -> RegionTraffic:
    return RegionTraffic(region=region, requests=requests, **more)


def since(new, before, *, old=(), old_before=()):
    window = GateWindow(former=1, baseline=tuple(old_before))
    return count_since(before, window, new, old)


def test_the_former_generation_is_that_with_most_traffic_and_never_the_new_one():
    def transition(*shares):
        rows = [
            GenerationShare.model_validate({"model": "m", "from": "a", "to": "a", "generation": g, "fraction": f})
            for g, f in shares
        ]
        return Transition.model_validate({"from": FleetState(traffic=tuple(rows)), "to": FleetState()})

    assert former_generation(transition((1, 0.2), (2, 0.8)), "m", 3) == 2
    assert former_generation(transition((3, 1.0)), "m", 3) is None
    assert former_generation(transition(), "m", 3) is None
    assert former_generation(transition((2, 1.0)), "other", 3) is None


def test_what_clients_chose_is_left_out():
    chosen = ChosenTraffic(requests=5, non_finite=1, failed=1, latency={3: 4, 4: 1}, token={1: 1})
    told = GenerationTraffic(
        model="m",
        generation=2,
        requests=9,
        errors=3,
        non_finite=2,
        latency={3: 5, 4: 1},
        first_token={2: 2},
        token={1: 3},
        chosen={"a": chosen},
    )
    state = RegionState(region="a", gateway_url="", traffic=(told,))
    whole, found = traffic_of("m", 2, [state])
    assert whole == counts()
    assert found == counts(gateway="a", requests=5, non_finite=1, failed=1, latency={3: 4, 4: 1}, token={1: 1})


def test_a_region_that_counted_nothing_counts_zero():
    chosen = {"b": ChosenTraffic(requests=5, latency={3: 5})}
    told = GenerationTraffic(model="m", generation=2, requests=9, chosen=chosen)
    states = [RegionState(region=name, gateway_url="", traffic=(told,) if name == "a" else ()) for name in "ab"]
    assert traffic_of("m", 2, states) == (counts("a"), counts("a", 5, gateway="b", latency={3: 5}), counts("b"))


def test_the_window_holds_what_came_since():
    before = counts("a", 100, errors=5, latency={3: 90, 4: 5}, predictions={"y": sketch(1.0, 2.0)})
    now = counts("a", 130, errors=6, latency={3: 100, 4: 5, 9: 19}, predictions={"y": sketch(1.0, 2.0, 2.0, -7.0)})
    [pair] = since([now], [before])
    assert (pair.new.requests, pair.new.errors, pair.new.latency) == (30, 1, {3: 10, 9: 19})
    found = pair.new.predictions["y"]
    assert (found.answers, found.values, found.total) == (2, 2, -5.0)
    assert found.bins == {prediction_bucket(2.0): 1, prediction_bucket(-7.0): 1}


@pytest.mark.parametrize(
    "now",
    [
        counts("a", 7, errors=1, latency={3: 6}),
        counts("a", 120, errors=1, latency={3: 80, 9: 39}),
        counts("a", 120, latency={3: 120}),
    ],
    ids=["fewer requests", "fewer in a bucket", "fewer errors"],
)
def test_a_router_that_started_anew_counts_from_its_start_and_nothing_is_negative(now):
    before = counts("a", 100, errors=5, latency={3: 95})
    other = counts("b", 30, errors=2)
    first, second = since([now, other], [before, counts("b", 10)])
    assert first.new == now
    assert (second.new.requests, second.new.errors) == (20, 2)


def test_both_generations_of_a_region_start_anew_together():
    [pair] = since(
        [counts("a", 200)], [counts("a", 100)], old=[counts("a", 3)], old_before=[counts("a", 900, latency={1: 900})]
    )
    assert (pair.new.requests, pair.old.requests) == (200, 3)


def test_a_former_generation_that_a_region_does_not_know_any_more_counts_nothing():
    [pair] = since([counts("a", 10)], [], old=[], old_before=[])
    assert pair.old.requests == 0


def test_the_former_generation_is_weighted_by_the_new_ones_regions():
    """In region a all is fast and 0.1, in b slow and 0.9; the canary is nearly all in b."""
    pairs = since(
        [
            counts("a", 10, latency={5: 10}, predictions={"y": sketch(*[0.1] * 10)}),
            counts("b", 90, latency={50: 90}, predictions={"y": sketch(*[0.9] * 90)}),
        ],
        [],
        old=[
            counts("a", 900, latency={5: 900}, predictions={"y": sketch(*[0.1] * 900)}),
            counts("b", 100, latency={50: 100}, predictions={"y": sketch(*[0.9] * 100)}),
        ],
    )
    found = latencies(pairs)
    assert found is not None
    assert found.old == {5: pytest.approx(10), 50: pytest.approx(90)}
    drift = predictions(pairs)["y"]
    assert drift.old_moments.mean == pytest.approx(drift.new_moments.mean)
    assert drift.old[prediction_bucket(0.9)] / sum(drift.old.values()) == pytest.approx(0.9)
    assert drift.noise == pytest.approx(1 / 100 + 0.01 / 900 + 0.81 / 100)


def test_regions_in_which_only_one_answered_are_not_compared():
    pairs = since([counts("a", 5, latency={1: 5})], [], old=[counts("a")])
    assert latencies(pairs) is None
    assert predictions(pairs) == {}


@given(st.permutations(list("abcd")), st.lists(st.floats(-5, 5), min_size=8, max_size=8))
def test_the_order_of_regions_does_not_matter(order, values):
    new = {r: counts(r, 2, predictions={"y": sketch(*values[i * 2 : i * 2 + 2])}) for i, r in enumerate("abcd")}
    old = {r: counts(r, 3, predictions={"y": sketch(*values[:3])}) for r in "abcd"}
    one = predictions(since(list(new.values()), [], old=list(old.values())))["y"]
    other = predictions(since([new[r] for r in order], [], old=[old[r] for r in reversed(order)]))["y"]
    assert one.old == pytest.approx(other.old)
    assert one.new == other.new
    assert one.new_moments.mean == pytest.approx(other.new_moments.mean)


def test_baselines_of_sixty_regions_stay_small_and_those_left_out_are_not_compared():
    random = np.random.default_rng(0)
    bins = dict(enumerate(random.integers(10**6, 10**7, len(PREDICTION_BOUNDS)).tolist()))
    full = PredictionSketch(answers=1, values=sum(bins.values()), bins=bins)
    regions = [f"region-{number}" for number in range(60)]
    new = [counts(r, 10**9, latency=dict.fromkeys(range(40), 10**6), predictions={"y": full}) for r in regions]
    slim, window = open_window(1, new, new)
    size = sum(len(item.model_dump_json()) for item in slim) + len(window.model_dump_json())
    assert size < MAX_WINDOW_BYTES + 4096
    assert 0 < len(window.unsketched) < 60
    pairs = count_since(slim, window, new, new)
    assert [pair.new.region for pair in pairs if not pair.sketched] == sorted(window.unsketched, key=regions.index)


def test_small_baselines_keep_all_they_have():
    new = [counts("a", 5, predictions={"y": sketch(1.0)})]
    slim, window = open_window(1, new, [counts("a", 7)])
    assert (slim, window.baseline, window.unsketched) == (tuple(new), (counts("a", 7),), ())


def test_baselines_of_a_gate_that_looks_at_no_predictions_have_none():
    slim, window = open_window(1, [counts("a", 5, predictions={"y": sketch(1.0)})], [], sketched=False)
    assert (slim, window.unsketched) == ((counts("a", 5),), ("a",))


def test_the_times_of_streams_are_those_since_the_baseline():
    chosen = {"a": ChosenTraffic(requests=5, first_token={3: 5}, token={1: 4})}
    told = GenerationTraffic(model="m", generation=2, chosen=chosen)
    _, now = traffic_of("m", 2, [RegionState(region="a", gateway_url="http://a", traffic=(told,))])
    before = counts("a", 3, gateway="a", first_token={3: 2}, token={1: 1})

    [pair] = since([now], [before])
    assert (pair.new.first_token, pair.new.token) == ({3: 3}, {1: 3})
    [anew] = since([now], [counts("a", 3, gateway="a", token={1: 5})])
    assert anew.new.token == {1: 4}


def test_a_restarted_router_is_known_by_any_of_its_counts_and_only_its_region_starts_anew():
    """The router of region a answered gateway b before, and does not know it any more."""
    before = [counts("a", 50, gateway="a"), counts("a", 9, gateway="b"), counts("b", 5, gateway="a")]
    now = [counts("a", 60, gateway="a"), counts("b", 7, gateway="a", under_way=4)]
    pairs = since(now, [], old=now, old_before=before)
    assert [(pair.old.region, pair.old.requests, pair.restarted) for pair in pairs] == [
        ("a", 60, True),
        ("b", 2, False),
    ]
    assert pairs[1].old.under_way == 4
    gone = since([counts("a", 60, gateway="a")], [counts("a", 50, gateway="a")], old=[], old_before=before[:1])
    assert [(pair.new.requests, pair.restarted) for pair in gone] == [(60, True)]
