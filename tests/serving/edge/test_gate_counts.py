"""What a real router counts for gates, asked through a real host.

One part, parts in a chain, walked by the host or the router.
"""

import time
from types import SimpleNamespace

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from ipnext.model.gate.sketch import LATENCY_SECONDS, latency_bucket, prediction_bucket
from serving.metrics.generation_counts import MOST_GATEWAYS
from serving.metrics.prediction_sketches import SAMPLE_SECONDS
from serving.protocol.tensors import Tensor
from serving.protocol.v2 import InferRequest, RequestedOutput, encode_request
from serving.routing.metrics import RouterMetrics

MODELS = ("one", "chain")


class Slow:
    """Stands where a part waits: each pass takes 50 ms more."""

    def wait(self, _: float) -> bool:
        time.sleep(0.05)
        return True


@pytest.fixture(params=[True, False], ids=["hosts walk", "the router walks"])
def running(request, new_edge):
    edge = new_edge(hosts_walk=request.param)
    edge.add("one", new_edge.echo("FP32"), generations=(1, 2))
    edge.add("chain", new_edge.echo("FP32"), new_edge.echo("FP32"), generations=(1, 2))
    edge.add("two-outputs", new_edge.echo("FP32", second="INT64"))
    edge.add("nan", new_edge.echo("FP32", answer=np.nan))
    edge.add("nan-chain", new_edge.echo("FP32"), new_edge.echo("FP32", answer=np.nan))
    edge.add("slow", new_edge.echo("FP32", gate=Slow()))
    with edge.running():
        yield edge


CHOSEN = {"x-ipnext-chosen-by": "weight"}
PINNED = {}
FORWARDED = {"x-ipnext-forwarded-by": "us;chosen-by=weight"}
FORWARDED_PIN = {"x-ipnext-forwarded-by": "us"}


def ask(edge, model, *values, generation=1, binary=True, more=None, by=CHOSEN, outputs=(), **headers):
    """One request with rows of these values, twice each, as a gateway sends it that has chosen the generation."""
    rows = np.repeat(np.array(values, np.float32)[:, None], 2, axis=1)
    tensors = {"x": Tensor("FP32", rows), **(more or {})}
    encoded = encode_request(InferRequest(tensors, outputs, binary_output=binary), binary=binary)
    headers = {**encoded.headers, "x-ipnext-generation": str(generation), **by, **headers}
    return httpx.post(f"{edge.url}/v2/models/{model}/infer", content=encoded.body, headers=headers, timeout=60)


def traffic(edge, model, generation=1):
    [found] = [t for t in edge.metrics.traffic if (t.model, t.generation) == (model, generation)]
    return found


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("binary", [True, False], ids=["binary", "json"])
def test_answers_are_sketched_by_generation(running, model, binary):
    assert ask(running, model, 0.5, -3.0, binary=binary).status_code == 200
    assert ask(running, model, 8.0, generation=2, binary=binary).status_code == 200
    first, second = (traffic(running, model, generation).predictions["y"] for generation in (1, 2))
    assert (first.answers, first.values, first.total, first.squares) == (1, 4, -5.0, 18.5)
    assert first.bins == {prediction_bucket(0.5): 2, prediction_bucket(-3.0): 2}
    assert second.bins == {prediction_bucket(8.0): 2}


def test_only_outputs_of_the_answer_are_sketched(running):
    z = {"z": Tensor("INT64", np.array([[7, 7]]))}
    assert ask(running, "two-outputs", 1.0, more=z).status_code == 200
    found = traffic(running, "two-outputs").predictions
    assert {name: sketch.total for name, sketch in found.items()} == {"y": 2.0, "w": 14.0}


@pytest.mark.parametrize("model", MODELS)
def test_of_answers_that_come_fast_only_some_are_sampled(running, model):
    began = time.monotonic()
    for _ in range(30):
        assert ask(running, model, 1.0).status_code == 200
    most = 1 + (time.monotonic() - began) / SAMPLE_SECONDS
    found = traffic(running, model)
    assert found.requests == 30
    assert 1 <= found.predictions["y"].answers <= most
    assert found.predictions["y"].values == 2 * found.predictions["y"].answers


@pytest.mark.parametrize("model", ["nan", "nan-chain"])
def test_answers_with_nan_are_counted_in_binary_and_as_errors_too_in_json(running, model):
    assert ask(running, model, 1.0).status_code == 200
    assert ask(running, model, 1.0, binary=False).status_code == 500
    found = traffic(running, model)
    assert (found.requests, found.errors, found.non_finite) == (2, 1, 2)
    assert found.predictions["y"].values == 0


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize(("by", "left_out"), [(CHOSEN, 0), (FORWARDED, 0), (PINNED, 3), (FORWARDED_PIN, 3)])
def test_gates_count_only_what_a_gateway_chose(running, model, by, left_out):
    for _ in range(2):
        assert ask(running, model, 1.0, by=by).status_code == 200
    assert ask(running, model, 1.0, by=by, **{"x-ipnext-generation": "1", "content-encoding": "br"}).status_code == 400
    found = traffic(running, model)
    assert (found.requests, sum(found.latency.values())) == (3, 2)
    judged = {} if left_out else {"us" if by is FORWARDED else running.metrics.region: (3, 2)}
    assert {name: (one.requests, sum(one.latency.values())) for name, one in found.chosen.items()} == judged
    assert bool(found.predictions) == (not left_out)


@pytest.mark.parametrize("model", ["nan", "nan-chain"])
def test_not_finite_answers_to_clients_that_chose_are_left_out_of_gates(running, model):
    assert ask(running, model, 1.0, binary=False, by=PINNED).status_code == 500
    found = traffic(running, model)
    assert (found.errors, found.non_finite, found.chosen) == (1, 1, {})


@pytest.mark.parametrize("model", MODELS)
@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_not_finite_answers_to_not_finite_inputs_are_the_clients_doing(running, model, value):
    assert ask(running, model, value).status_code == 200
    refused = ask(running, model, value, outputs=(RequestedOutput("y", binary=False),))
    assert refused.status_code == 400
    assert "inputs: hold NaN or infinity" in refused.json()["error"]
    found = traffic(running, model)
    assert (found.requests, found.errors, found.non_finite) == (2, 0, 0)


@pytest.mark.parametrize(
    ("usual", "count", "late", "left_out"),
    [(0.01, 20, 0.015, True), (0.01, 20, 0.5, False), (0.01, 19, 0.015, False), (10.0, 20, 15.0, True)],
)
def test_a_deadline_too_short_for_any_generation_says_nothing_of_one(usual, count, late, left_out):
    metrics = RouterMetrics(region="north")
    for _ in range(count):
        metrics.note_answer("m", 1, status=200, seconds=usual)
        metrics.note_answer("other", 1, status=200, seconds=1000.0)
    metrics.note_answer("m", 2, status=504, seconds=late, chosen_by="north")
    [found] = [told for told in metrics.traffic if (told.model, told.generation) == ("m", 2)]
    assert (found.requests, found.errors) == (1, 1)
    chosen = found.chosen["north"]
    assert (chosen.withdrawn, chosen.requests, chosen.failed) == ((1, 0, 0) if left_out else (0, 1, 1))


def test_a_slow_generation_is_judged_by_the_fast_one():
    metrics = RouterMetrics(region="north")
    for _ in range(20):
        metrics.note_answer("m", 1, status=200, seconds=0.01)
        metrics.note_answer("m", 2, status=200, seconds=1.0)
    metrics.note_answer("m", 2, status=504, seconds=0.5, chosen_by="north")
    assert [told.chosen["north"].errors for told in metrics.traffic if told.chosen] == [1]


def test_each_answer_of_a_chosen_generation_counts_once_by_how_it_ended():
    metrics = RouterMetrics(region="north")
    for how in (
        {"status": 200},
        {"status": 500, "non_finite": True},
        {"status": 502, "streamed": True},
        {"status": 499, "streamed": True},
        {"status": 499},
    ):
        metrics.note_chosen("m", 2, "south")
        metrics.note_answer("m", 2, seconds=0.01, chosen_by="south", **how)
    metrics.note_chosen("m", 2, "south")
    metrics.note_answer("m", 2, status=500, seconds=0.01)
    [found] = metrics.traffic
    chosen = found.chosen["south"]
    assert (chosen.requests, chosen.errors, chosen.non_finite) == (4, 2, 1)
    assert (chosen.failed, chosen.broken, chosen.left, chosen.withdrawn, chosen.under_way) == (1, 1, 1, 1, 1)


def test_gateways_beyond_the_most_are_not_counted():
    metrics = RouterMetrics(region="north")
    for number in range(MOST_GATEWAYS + 10):
        metrics.note_answer("m", 2, status=200, seconds=0.01, chosen_by=f"south-{number}")
    [found] = metrics.traffic
    assert (found.requests, len(found.chosen)) == (MOST_GATEWAYS + 10, MOST_GATEWAYS)


@pytest.mark.parametrize("model", MODELS)
def test_only_answers_that_went_well_have_a_latency(running, model):
    assert ask(running, model, 1.0).status_code == 200
    assert ask(running, model, 1.0, more={"k": Tensor("FP32", np.zeros(1, np.float32))}).status_code == 400
    assert sum(traffic(running, model).latency.values()) == 1


def test_a_slow_answer_is_in_its_bucket(running):
    assert ask(running, "slow", 1.0).status_code == 200
    [(bucket, count)] = traffic(running, "slow").latency.items()
    assert (count, latency_bucket(0.05) <= bucket) == (1, True)
    assert LATENCY_SECONDS[bucket] < 60


def test_all_of_it_is_in_the_state_and_in_the_metrics(running):
    ask(running, "one", 2.0, 4.0)
    state = httpx.get(f"{running.url}/control/state", timeout=60).json()
    [told] = [t for t in state["traffic"] if t["model"] == "one"]
    assert told["predictions"]["y"]["values"] == 4
    assert list(told["latency"].values()) == [1]
    families = text_string_to_metric_families(httpx.get(f"{running.url}/metrics", timeout=60).text)
    found = {s.name: s for f in families for s in f.samples if s.labels.get("model") == "one"}
    assert found["ipnext_request_latency_seconds_count"].value == 1
    assert found["ipnext_sampled_answers_total"].labels["output"] == "y"
    names = ("ipnext_predictions_total", "ipnext_prediction_sum", "ipnext_prediction_square_sum")
    assert [found[name].value for name in names] == [4, 12, 40]


def test_a_generation_that_leaves_the_table_keeps_its_counts_and_lets_its_latencies_and_predictions_go():
    routes = [SimpleNamespace(model="m", generation=1, snapshots={})]
    metrics = RouterMetrics(region="north", served=lambda: routes)
    metrics.note_answer("m", 1, status=200, seconds=0.01)
    metrics.note_predictions("m", 1, {"y": (1, 2.0, 4.0, [3], [1])})
    [before] = metrics.traffic
    routes.clear()
    [after] = metrics.traffic
    assert (before.requests, sum(before.latency.values()), before.predictions["y"].total) == (1, 1, 2.0)
    assert (after.requests, after.latency, after.predictions) == (1, {}, {})
    assert b"ipnext_request_latency_seconds_count{" not in metrics.text()
