"""A host process: loads in the background, answers for its generations only, drains and ends in order."""

import threading

import httpx
import numpy as np
import pytest
import torch

from ipnext.model.deployment.host_control import HeldGeneration
from ipnext.names import DEADLINE_HEADER
from tests.waiting import PATIENCE_SECONDS, until

LONG = np.full((75, 256), 0.01, np.float32)
SHORT = LONG[:1]
PATIENT = {DEADLINE_HEADER: str(int(PATIENCE_SECONDS * 1000))}


def held(*pairs):
    return {(generation, snapshot) for generation, snapshot in pairs}


def ready(state):
    return {(one.generation, one.snapshot) for one in state.ready}


class Background:
    """A request made by another thread."""

    def __init__(self, call):
        self.response: httpx.Response | None = None
        self._thread = threading.Thread(target=self._run, args=(call,))
        self._thread.start()

    def _run(self, call):
        self.response = call()

    def result(self) -> httpx.Response:
        self._thread.join(PATIENCE_SECONDS)
        assert self.response is not None
        return self.response


@pytest.fixture
def here(published, damaged_store):
    """Holds of the damaged store's snapshots."""

    def hold(part, number, *generations, **changes):
        uri = published.sources[part, number].uri.replace(published.store.uri, damaged_store)
        return published.hold(part, number, *generations, **{"uri": uri, **changes})

    return hold


@pytest.fixture
def host(lone_host, here):
    """A host that holds the heavy part and a sparse one, with one inference thread and a queue of one."""
    lone_host.hold(here("sparse", 1), here("heavy", 1))
    assert not lone_host.settle().failures
    return lone_host


@pytest.fixture
def ids(toolbox):
    return {"ids": toolbox.example(4)["ids"]}


def run_long(host) -> Background:
    """A request that runs for a while, and as long as it may; returns once the host has begun it."""
    work = Background(lambda: host.infer_part("heavy", 1, {"x": LONG}, **PATIENT))
    until(lambda: host.state().in_flight)
    return work


def test_a_part_answers_with_its_proof(host, published, toolbox, ids):
    response = host.infer_part("sparse", 1, ids)
    assert response.headers["x-ipnext-snapshots"] == "sparse=1"
    assert response.headers["x-ipnext-generation"] == "1"
    expected = published.modules["sparse", 1](torch.from_numpy(ids["ids"]))["embedding"]
    assert torch.equal(torch.from_numpy(toolbox.decode(response).outputs["embedding"].data), expected)


def test_a_json_request_is_answered_in_json(host, ids):
    body = {
        "id": "42",
        "inputs": [{"name": "ids", "datatype": "INT64", "shape": [1, 3], "data": [[1, 2, 3]]}],
        "outputs": [{"name": "stamp"}],
    }
    response = host.client.post(f"{host.url}/parts/click/sparse/infer", json=body, headers={"x-ipnext-generation": "1"})
    answer = response.json()
    assert answer["outputs"] == [{"name": "stamp", "datatype": "INT64", "shape": [1], "data": [1]}]
    assert answer["id"] == "42"


def test_the_same_holds_again_change_nothing_and_generations_move_at_once(host, here):
    both = (here("sparse", 1), here("heavy", 1))
    host.hold(*both)
    assert ready(host.state()) == held((1, 1))
    assert not host.state().loading
    host.hold(here("sparse", 1, 1, 5), both[1])
    assert HeldGeneration(model="click", part="sparse", generation=5, snapshot=1) in host.state().ready
    host.hold(*both)


@pytest.mark.parametrize(
    ("path", "generation", "status", "words"),
    [
        ("sparse", "9", 409, "generation 9 of click.sparse is not ready here; ready: [1]"),
        ("other", "1", 409, "ready: none"),
        ("sparse", "x", 400, "x-ipnext-generation"),
        ("sparse", None, 400, "x-ipnext-generation"),
    ],
)
def test_a_generation_that_is_not_held_is_refused(host, ids, path, generation, status, words):
    headers = {} if generation is None else {"x-ipnext-generation": generation}
    response = host.infer(f"/parts/click/{path}/infer", ids, **headers)
    assert response.status_code == status
    assert words in response.json()["error"]


@pytest.mark.parametrize(
    ("arrays", "words"),
    [
        ({"other": np.zeros((1, 3), np.int64)}, "'ids' is missing"),
        ({"ids": np.zeros((1, 3), np.float32)}, "'ids': datatype must be INT64, got FP32"),
        ({"ids": np.zeros((1, 4), np.int64)}, "'ids': shape must be [-1, 3]"),
        ({"ids": np.zeros((0, 3), np.int64)}, "batch size >= 1"),
        ({"ids": np.full((1, 3), 50)}, "beyond its table"),
    ],
)
def test_wrong_tensors_are_refused_by_name(host, arrays, words):
    response = host.infer_part("sparse", 1, arrays)
    assert (response.status_code, response.headers["x-ipnext-error"]) == (400, "InvalidInput")
    assert words in response.json()["error"]


@pytest.mark.parametrize("deadline", ["0", "-1", "x", "1.5", "9999999999"])
def test_a_deadline_that_is_no_time_is_refused(host, ids, deadline):
    response = host.infer_part("sparse", 1, ids, **{DEADLINE_HEADER: deadline})
    assert response.status_code == 400
    assert "x-ipnext-deadline-ms" in response.json()["error"]


def test_an_unknown_path_and_a_bad_control_body_are_refused(host):
    assert host.get("/nothing").status_code == 404
    response = host.client.put(host.url + "/control/holds", content=b'{"holds": [{"model": 3}]}')
    assert response.status_code == 400
    assert "holds.0" in response.json()["error"]


def test_a_deadline_ends_a_running_request_with_504(host):
    def was_told_while_the_pass_ran():  # a busy machine may look only after it; then the next one is looked at
        response = host.infer_part("heavy", 1, {"x": LONG}, **{DEADLINE_HEADER: "100"})
        assert response.status_code == 504
        running = host.state().in_flight
        until(lambda: not host.state().in_flight)
        return running

    until(was_told_while_the_pass_ran)
    until(lambda: host.infer_part("heavy", 1, {"x": SHORT}).status_code == 200)


def test_a_full_queue_answers_503_with_retry_after(host):
    running = run_long(host)
    waiting = [Background(lambda: host.infer_part("heavy", 1, {"x": SHORT}, **PATIENT)) for _ in range(4)]
    responses = [work.result() for work in waiting]
    full = [response for response in responses if response.status_code == 503]
    assert full
    assert all(response.headers["retry-after"] == "1" for response in full)
    assert {response.status_code for response in responses} <= {200, 503}
    assert running.result().status_code == 200


def test_a_client_that_leaves_takes_its_waiting_request_with_it(host):
    running = run_long(host)
    with pytest.raises(httpx.TimeoutException), httpx.Client(timeout=0.2) as client:
        host.__class__(host.process, host.url, client).infer_part("sparse", 1, {"ids": np.zeros((1, 3), np.int64)})
    until(lambda: host.state().in_flight <= 1)
    assert running.result().status_code == 200


def test_unloading_waits_for_the_requests_that_use_the_snapshot(host, here):
    running = run_long(host)
    host.hold(here("sparse", 1))
    assert {one.part for one in host.state().ready} == {"sparse"}
    assert host.infer_part("heavy", 1, {"x": SHORT}).status_code == 409
    assert running.response is None, "the request must still run, or the test shows nothing"
    response = running.result()
    assert response.status_code == 200
    assert response.headers["x-ipnext-snapshots"] == "heavy=1"


def test_what_cannot_be_loaded_is_told_and_the_rest_serves(host, here, ids):
    """A flipped byte in a blob, a snapshot that is not there, an unknown engine: one code each."""
    gone = here("heavy", 1)
    host.hold(
        here("dense", 1),
        here("sparse", 1),
        here("sparse", 2, engine="other"),
        here("heavy", 1, uri=gone.uri.replace(gone.digest, "f" * 64), digest="f" * 64),
    )
    codes = {(one.part, one.snapshot): one.code for one in host.settle().failures}
    assert codes == {
        ("dense", 1): "ArtifactDigestMismatch",
        ("sparse", 2): "LoadFailed",
        ("heavy", 1): "ArtifactMissing",
    }
    assert host.infer_part("sparse", 1, ids).status_code == 200
    assert ready(host.state()) == held((1, 1))


def test_a_drained_host_takes_nothing_new_and_sigterm_lets_it_finish_and_exit_0(machine, published):
    host = machine.start_host("own")
    host.hold(published.hold("heavy", 1))
    assert not host.settle().failures
    running = run_long(host)
    assert host.client.post(host.url + "/control/drain").json()["draining"] is True
    refused = host.infer_part("heavy", 1, {"x": SHORT})
    assert (refused.status_code, refused.headers["retry-after"]) == (503, "1")
    assert host.get("/healthz").status_code == 200
    assert running.response is None, "the request must still run, or the test shows nothing"
    host.process.terminate()
    assert running.result().status_code == 200
    assert host.process.wait(PATIENCE_SECONDS) == 0
