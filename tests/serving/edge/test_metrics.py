"""The counters of router and host, as Prometheus reads them."""

import threading

import httpx
import numpy as np
import pytest
from prometheus_client.parser import text_string_to_metric_families

from serving.metrics.tallies import Histogram
from serving.protocol.tensors import Tensor
from serving.protocol.v2 import InferRequest, encode_request
from serving.router.router import RouterLimits
from serving.routing.metrics import RouterMetrics
from tests.waiting import PATIENCE_SECONDS, until


def samples(url):
    """Every sample of a process: {(name, labels): value}."""
    response = httpx.get(f"{url}/metrics", timeout=60)
    assert response.headers["content-type"] == "text/plain; version=0.0.4"
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(response.text)
        for sample in family.samples
    }


def value(found, name, **labels):
    """The sum of a metric over all series that have these labels."""
    return sum(number for (key, have), number in found.items() if key == name and labels.items() <= dict(have).items())


def post(edge, model, rows=1, **headers):
    encoded = encode_request(InferRequest({"x": Tensor("FP32", np.zeros((rows, 2), np.float32))}, binary_output=True))
    url = f"{edge.url}/v2/models/{model}/infer"
    response = httpx.post(url, content=encoded.body, headers={**encoded.headers, **headers}, timeout=60)
    return response, len(encoded.body)


@pytest.fixture
def running(new_edge):
    edge = new_edge(limits=RouterLimits(max_in_flight=8))
    edge.add("one", new_edge.echo("FP32"), generations=(1, 2))
    edge.add("two", new_edge.echo("FP32"), new_edge.echo("FP32"))
    edge.add("nan", new_edge.echo("FP32", answer=np.nan))
    edge.add("slow", new_edge.echo("FP32", gate=edge.gate))
    with edge.running():
        edge.host_url = f"http://127.0.0.1:{edge.host_port}"
        yield edge


def test_the_router_counts_answers_by_model_generation_and_status(running):
    sizes = [post(running, "one", 3), post(running, "one", **{"x-ipnext-generation": "1"}), post(running, "two")]
    post(running, "one", **{"x-ipnext-deadline-ms": "no"})
    post(running, "absent")
    found = samples(running.url)
    assert value(found, "ipnext_requests_total", model="one", generation="2", region="north", code="200") == 1
    assert value(found, "ipnext_requests_total", model="one", generation="1", code="200") == 1
    assert value(found, "ipnext_requests_total", model="one", generation="2", code="400") == 1
    assert value(found, "ipnext_requests_total", model="unknown", generation="none", code="404") == 1
    assert value(found, "ipnext_request_duration_seconds_count", model="two", code="200") == 1
    assert value(found, "ipnext_request_duration_seconds_bucket", model="two", code="200", le="+Inf") == 1
    assert 0 < value(found, "ipnext_request_duration_seconds_sum", model="two", code="200") < 60
    assert value(found, "ipnext_request_bytes_total", code="200") == sum(size for _, size in sizes)
    assert value(found, "ipnext_answer_bytes_total", code="200") == sum(len(answer.content) for answer, _ in sizes)
    assert value(found, "ipnext_generation_snapshot", model="two", part="p1", snapshot="1") == 1
    assert value(found, "ipnext_requests_in_flight") == 0


def test_the_host_counts_answers_by_part_snapshot_generation_and_status(running):
    _, size = post(running, "one", 3)
    post(running, "two", 5)
    found = samples(running.host_url)
    one = {"model": "one", "part": "p0", "snapshot": "2", "region": "north"}
    assert value(found, "ipnext_part_requests_total", **one, generation="2", code="200") == 1
    assert value(found, "ipnext_part_request_bytes_total", **one) == size
    assert value(found, "ipnext_part_answer_bytes_total", **one) > 3 * 8
    assert value(found, "ipnext_part_request_bytes_total", model="two", part="p1") == 5 * 8
    assert value(found, "ipnext_part_answer_bytes_total", model="two", part="p1") == 5 * 8
    assert value(found, "ipnext_part_request_duration_seconds_count", model="two") == 2
    assert value(found, "ipnext_part_queue_seconds_count", **one) == 1
    assert value(found, "ipnext_part_pass_duration_seconds_count", **one) == 1
    assert value(found, "ipnext_part_pass_rows_sum", **one) == 3
    assert value(found, "ipnext_part_requests_in_flight") == 0


def test_requests_answered_together_count_as_one_pass(running):
    [slow] = [served for hold, served in running.held.values if hold.model == "slow"]
    for rows in (2, 4, 8):
        slow.costs.note(rows, 0.006)  # too long for the event loop, short enough to be joined
    post_all = [threading.Thread(target=post, args=(running, "slow", 2)) for _ in range(5)]
    post_all[0].start()
    until(lambda: value(samples(running.host_url), "ipnext_part_requests_in_flight", model="slow") == 1)
    for thread in post_all[1:]:
        thread.start()
    until(lambda: value(samples(running.host_url), "ipnext_part_requests_in_flight", model="slow") == 5)
    assert value(samples(running.url), "ipnext_requests_in_flight", model="slow") == 5
    running.gate.set()
    for thread in post_all:
        thread.join(PATIENCE_SECONDS)
    found = samples(running.host_url)
    assert value(found, "ipnext_part_pass_requests_count", model="slow") == 2
    assert value(found, "ipnext_part_pass_requests_sum", model="slow") == 5
    assert value(found, "ipnext_part_pass_requests_bucket", model="slow", le="4.0") == 2
    assert value(found, "ipnext_part_pass_rows_sum", model="slow") == 10
    assert value(found, "ipnext_part_queue_seconds_sum", model="slow") > 0


def test_non_finite_answers_cancelled_and_refused_requests_are_counted(running):
    post(running, "nan")
    encoded = encode_request(InferRequest({"x": Tensor("FP32", np.zeros((1, 2), np.float32))}))
    with running.asking("slow", encoded.body, encoded.headers):
        until(lambda: value(samples(running.host_url), "ipnext_part_requests_in_flight", model="slow") == 1)
    until(lambda: value(samples(running.url), "ipnext_requests_total", model="slow", code="499") == 1)
    running.gate.set()
    until(lambda: value(samples(running.host_url), "ipnext_part_requests_total", model="slow", code="499") == 1)
    post_wrong = {"x-ipnext-generation": "7"}
    httpx.post(
        f"{running.host_url}/parts/one/p0/infer",
        content=encoded.body,
        headers={**encoded.headers, **post_wrong},
        timeout=60,
    )
    found = samples(running.host_url)
    assert value(found, "ipnext_part_non_finite_answers_total", model="nan") == 1
    assert value(samples(running.url), "ipnext_non_finite_answers_total", model="nan") == 1
    assert value(found, "ipnext_part_refusals_total", code="GenerationNotHeld") == 1


def test_a_generation_that_nobody_asks_for_any_more_is_forgotten_and_a_served_one_is_not(monkeypatch):
    class Route:
        model, generation, own = "m", 2, frozenset({("p", 2)})

    metrics = RouterMetrics(region="north", served=lambda: (Route,))
    for generation in (1, 2):
        metrics.note_answer("m", generation, status=200, seconds=0.1)
    metrics.text()
    assert len(metrics.traffic) == 2
    monkeypatch.setattr("serving.routing.metrics._FORGET_SECONDS", -1.0)
    with metrics.in_flight("m", 1):
        metrics.text()
        assert len(metrics.traffic) == 2
    assert 'generation="1"' not in metrics.text().decode()
    assert [one.generation for one in metrics.traffic] == [2]


def test_a_histogram_counts_each_value_in_the_first_bucket_that_holds_it():
    histogram = Histogram((1.0, 2.0))
    for number in (0.5, 1.0, 1.5, 9.0):
        histogram.observe(number)
    assert (histogram.count, histogram.total, histogram._counts) == (4, 12.0, [2, 1, 1])
