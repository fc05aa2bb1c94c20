"""A router process: the V2 edge, its refusals and its counters."""

import numpy as np
import psutil
import pytest

from ipnext.model.deployment.router_table import PartEndpoint, RoutedModel, RouterTable
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.registry.registry import GraphNode, PartGraph
from tests.waiting import until

CLICK = "/v2/models/click"
HEAVY = PartGraph(
    nodes=(GraphNode(name="heavy", part="heavy", inputs={"x": "request.x"}),), outputs={"sum": "heavy.output"}
)


@pytest.fixture
def router(fleet):
    return fleet.router


@pytest.fixture
def request_arrays(toolbox):
    return toolbox.example(2)


def test_an_answer_carries_the_proof_in_headers_and_body(router, toolbox, request_arrays):
    response = router.infer(f"{CLICK}/infer", request_arrays)
    answer = toolbox.decode(response)
    assert response.headers["x-ipnext-generation"] == "2"
    assert response.headers["x-ipnext-snapshots"] == "dense=2,sparse=2"
    assert response.headers["x-ipnext-region"] == "north"
    assert (answer.model_name, answer.model_version) == ("click", "2")
    assert answer.parameters == {"generation": 2, "snapshots": "dense=2,sparse=2", "region": "north"}


def test_json_in_gives_json_out_and_numbers_equal_the_binary_ones(router, toolbox, request_arrays):
    body = {
        "id": "a",
        "inputs": [
            {"name": "ids", "datatype": "INT64", "shape": [2, 3], "data": request_arrays["ids"].tolist()},
            {"name": "features", "datatype": "FP32", "shape": [2, 3], "data": request_arrays["features"].tolist()},
        ],
        "outputs": [{"name": "score"}],
    }
    response = router.client.post(f"{router.url}{CLICK}/infer", json=body)
    assert response.headers["content-type"] == "application/json"
    [score] = response.json()["outputs"]
    binary = toolbox.decode(router.infer(f"{CLICK}/infer", request_arrays)).outputs["score"].data
    assert np.array_equal(np.array(score["data"], np.float32), binary)
    assert response.json()["id"] == "a"


@pytest.mark.parametrize(("path", "headers"), [("/infer", {"x-ipnext-generation": "1"}), ("/versions/1/infer", {})])
def test_a_generation_can_be_pinned_by_header_or_version(router, toolbox, request_arrays, path, headers):
    answer = toolbox.decode(router.infer(CLICK + path, request_arrays, **headers))
    assert answer.model_version == "1"
    assert answer.outputs["stamps"].data.tolist() == [[1, 1], [1, 1]]


@pytest.mark.parametrize(
    ("path", "headers", "status", "words"),
    [
        ("/v2/models/other/infer", {}, 404, "'other' is not served here"),
        (f"{CLICK}/infer", {"x-ipnext-generation": "7"}, 404, "served: 1, 2"),
        (f"{CLICK}/versions/7/infer", {}, 404, "served: 1, 2"),
        (f"{CLICK}/infer", {"x-ipnext-deadline-ms": "soon"}, 400, "x-ipnext-deadline-ms"),
        (f"{CLICK}/infer", {"inference-header-content-length": "99999"}, 400, "must be from 1 to"),
        ("/v2/models/click/explain", {}, 404, "is not served here"),
    ],
)
def test_a_refusal_has_the_protocols_error_form(router, request_arrays, path, headers, status, words):
    response = router.infer(path, request_arrays, **headers)
    assert response.status_code == status
    assert list(response.json()) == ["error"]
    assert words in response.json()["error"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"ids": None}, "'ids' is missing; the inputs are ids, features"),
        ({"extra": np.zeros(2)}, "'extra' does not exist"),
        ({"ids": np.zeros((2, 3), np.float32)}, "part 'sparse': input 'ids': datatype must be INT64"),
        ({"features": np.zeros((3, 3), np.float32)}, "part 'dense': inputs must have one batch size"),
    ],
)
def test_wrong_tensors_are_400_and_name_the_tensor(router, request_arrays, changes, words):
    arrays = {name: array for name, array in (request_arrays | changes).items() if array is not None}
    response = router.infer(f"{CLICK}/infer", arrays)
    assert response.status_code == 400
    assert words in response.json()["error"]
    assert response.headers["x-ipnext-generation"] == "2"


def test_metadata_lists_generations_and_the_tensors_of_the_whole_graph(router):
    about = router.get(CLICK).json()
    assert about["versions"] == ["1", "2"]
    assert [(t["name"], t["datatype"], t["shape"]) for t in about["inputs"]] == [
        ("ids", "INT64", [-1, 3]),
        ("features", "FP32", [-1, 3]),
    ]
    assert [(t["name"], t["datatype"], t["shape"]) for t in about["outputs"]] == [
        ("score", "FP32", [-1]),
        ("stamps", "INT64", [-1, 2]),
    ]


def test_health_and_readiness(router):
    assert router.get("/v2").json()["extensions"] == ["binary_tensor_data", "model_repository", "statistics"]
    assert router.get("/v2/health/live").json() == {"live": True}
    assert router.get("/v2/health/ready").json() == {"ready": True}
    assert router.get(f"{CLICK}/ready").json() == {"name": "click", "version": "2", "ready": True}
    assert router.get(f"{CLICK}/versions/1/ready").json()["version"] == "1"
    assert router.get(f"{CLICK}/versions/9/ready").status_code == 404
    assert router.get("/v2/models/other/ready").status_code == 404


def test_without_hosts_a_model_is_not_ready_and_answers_503_with_retry_after(fleet, request_arrays):
    fleet.serve(1, 2, parts=("sparse",))
    ready = fleet.router.get(f"{CLICK}/ready")
    assert (ready.status_code, ready.json()["ready"]) == (503, False)
    response = fleet.router.infer(f"{CLICK}/infer", request_arrays)
    assert (response.status_code, response.headers["retry-after"]) == (503, "1")
    assert "no host ready for dense" in response.json()["error"]


def test_a_fresh_router_is_live_and_not_ready_until_its_table_comes(session_machine, fleet):
    router = session_machine.start_router("fresh")
    assert router.get("/v2/health/live").status_code == 200
    assert router.get("/v2/health/ready").status_code == 503
    router.follow(RouterTable(revision=3, region="north"))
    assert router.get("/v2/health/ready").status_code == 200
    assert router.end() == 0


def test_a_table_renamed_into_place_is_in_use_and_a_bad_one_is_not(fleet):
    fleet.serve(1, 2)
    assert fleet.router.state().revision == fleet.revision
    fleet.router.table.write_text("not json")
    until(lambda: b"cannot be read" in (fleet.machine.root / "router.log").read_bytes())
    assert fleet.router.state().revision == fleet.revision
    assert fleet.router.get(f"{CLICK}/ready").status_code == 200


def test_the_deadline_covers_the_whole_request(fleet, published, damaged_store, lone_host):
    uri = published.sources["heavy", 1].uri.replace(published.store.uri, damaged_store)
    lone_host.hold(published.hold("heavy", 1, uri=uri))
    assert not lone_host.settle().failures
    served = ServedGeneration(generation=1, graph=HEAVY, snapshots={"heavy": 1})
    endpoint = PartEndpoint(part="heavy", url=lone_host.url, generations=(1,))
    heavy = RoutedModel(model="click", served=(served,), endpoints=(endpoint,))
    fleet.follow(heavy)
    slow = np.full((150, 256), 0.01, np.float32)
    response = fleet.router.infer(f"{CLICK}/infer", {"x": slow}, **{"x-ipnext-deadline-ms": "100"})
    assert response.status_code == 504
    assert response.headers["x-ipnext-generation"] == "1"


def test_traffic_is_counted_for_the_agent_and_for_prometheus(fleet, request_arrays):
    def traffic():
        state = fleet.router.state()
        return {one.generation: one for one in state.traffic if one.model == "click"}

    before = traffic()[2]
    for _ in range(3):
        fleet.router.infer(f"{CLICK}/infer", request_arrays)
    fleet.router.infer(f"{CLICK}/infer", {"ids": request_arrays["ids"]})
    after = traffic()[2]
    assert after.requests - before.requests == 4
    assert after.errors == before.errors
    assert after.in_flight == 0
    assert after.latency_seconds_sum > before.latency_seconds_sum
    text = fleet.router.get("/metrics").text
    assert 'ipnext_requests_total{code="200",generation="2",model="click",region="north"}' in text
    assert 'ipnext_request_duration_seconds_bucket{code="200",generation="2"' in text


def test_the_router_is_light_and_free_of_torch(machine):
    process = psutil.Process(machine.start_router("light", fork=False).process.pid)
    assert process.memory_info().rss < 100 * 2**20
    assert not any("torch" in mapped.path for mapped in process.memory_maps())
