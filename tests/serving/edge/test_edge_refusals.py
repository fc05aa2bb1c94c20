"""What a client may get wrong: a 4xx that names it, and the next request is answered."""

import gzip
import json
import threading
import zlib

import httpx
import numpy as np
import pytest

from serving.protocol import v2
from serving.protocol.tensors import Tensor
from serving.protocol.v2 import InferRequest, decode_response, encode_request, parse_header_length
from serving.router.router import RouterLimits
from tests.waiting import PATIENCE_SECONDS, until

LENGTH = "inference-header-content-length"


def body_of(rows=2, **entry):
    tensor = {"name": "x", "datatype": "FP32", "shape": [rows, 2], "data": [0.5] * (2 * rows), **entry}
    return json.dumps({"inputs": [tensor]}).encode()


def binary_of(rows=2):
    return encode_request(InferRequest({"x": Tensor("FP32", np.full((rows, 2), 0.5, np.float32))}))


@pytest.fixture(params=["one part", "two parts", "two parts, walked by the router"])
def ask(request, edge, walking_edge):
    """Posts a body to a model."""
    asked = walking_edge if request.param.endswith("router") else edge
    model = "echo-fp32" if request.param == "one part" else "chain-fp32"

    def post(content, **headers):
        url = f"{asked.url}/v2/models/{model}/infer"
        return httpx.post(
            url, content=content, headers={name.replace("_", "-"): text for name, text in headers.items()}, timeout=60
        )

    return post


def refused(response, status, words):
    assert response.status_code == status, response.text
    assert words in response.json()["error"]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not JSON"),
        (b"\xff\xfe\x00", "not JSON"),
        (b'{"inputs": [{"name":"x","datatype":"FP32","shape":[1,2],"data":[1,NaN]}]}', "tensor 'x'"),
        (body_of(data=[1, 2, 3]), "tensor 'x': shape [2, 2] holds 4 elements, got 3"),
        (body_of(name="z"), "input 'x' is missing"),
        (body_of(datatype="FP8"), "tensor 'x': datatype 'FP8'"),
        (body_of(shape=[4]), "input 'x': shape must be [-1, 2]"),
        (
            body_of(parameters={"shared_memory_region": "r"}),
            "tensor 'x': parameter 'shared_memory_region' is not supported",
        ),
        (b'{"parameters": {"timeout": "1s"}, ' + body_of()[1:], "parameters.timeout: must be whole microseconds"),
        (b'{"id": "\\ud800", ' + body_of()[1:], "id"),
        (b'{"outputs": [{"name": "\\ud800"}], ' + body_of()[1:], "outputs"),
    ],
)
def test_json_that_is_wrong_is_400_and_names_what(ask, content, words):
    refused(ask(content), 400, words)
    assert ask(body_of()).status_code == 200


@pytest.mark.parametrize(
    ("cut", "length", "words"),
    [
        (-1, None, "tensor 'x': binary_data_size is 16, but 15 bytes of binary data are left"),
        (-16, None, "tensor 'x': binary_data_size is 16, but 0 bytes"),
        (None, "1", "not JSON"),
        (None, "100000", "must be from 1 to"),
        (None, "-1", "must be a whole number"),
    ],
)
def test_binary_data_that_is_cut_names_the_tensor(ask, cut, length, words):
    encoded = binary_of()
    response = ask(encoded.body[:cut], **{LENGTH: length or str(encoded.header_length)})
    refused(response, 400, words)


@pytest.mark.parametrize(
    ("coding", "pack"), [("gzip", gzip.compress), ("deflate", zlib.compress), ("GZIP", gzip.compress)]
)
def test_packed_bodies_are_unpacked(ask, coding, pack):
    assert ask(pack(body_of()), content_encoding=coding).json()["outputs"][0]["data"] == [0.5] * 4
    assert ask(pack(body_of(20_000)), content_encoding=coding).status_code == 200
    assert ask(body_of(), content_encoding="identity").status_code == 200


@pytest.mark.parametrize(
    ("content", "coding", "words"),
    [
        (body_of(), "gzip", "body: is not gzip"),
        (gzip.compress(body_of()), "deflate", "body: is not deflate"),
        (gzip.compress(body_of())[:-3], "gzip", "ends early"),
        (gzip.compress(body_of()) + b"more", "gzip", "goes on after its end"),
        (gzip.compress(body_of()), "br", "'br' is not one of gzip, deflate"),
        (gzip.compress(body_of()), "gzip, gzip", "is not one of gzip, deflate"),
        (b"", "gzip", "ends early"),
    ],
    ids=["plain", "other coding", "cut", "lengthened", "unknown coding", "two codings", "empty"],
)
def test_a_body_that_is_not_packed_as_it_says_is_400(ask, content, coding, words):
    refused(ask(content, content_encoding=coding), 400, words)


def test_a_body_that_unpacks_to_too_much_is_413_and_never_unpacked_whole(ask):
    bomb = gzip.compress(bytes(50 * 2**20), 1)
    refused(ask(bomb, content_encoding="gzip"), 413, "unpacks to more than 8388608 bytes")


@pytest.mark.parametrize(
    ("accepts", "coding"),
    [
        ("gzip", "gzip"),
        ("deflate", "deflate"),
        ("gzip, deflate, br", None),
        ("identity", None),
        ("br", None),
        ("", None),
    ],
)
def test_large_answers_are_packed_for_those_who_ask_for_it_alone(ask, accepts, coding):
    response = ask(body_of(2000), accept_encoding=accepts)
    assert response.headers.get("content-encoding") == coding
    assert response.json()["outputs"][0]["data"] == [0.5] * 4000
    assert "content-encoding" not in ask(body_of(), accept_encoding=accepts).headers, "a small one is not worth it"


def test_json_beyond_its_limit_is_413_and_binary_data_is_not(new_edge):
    edge = new_edge(limits=RouterLimits(max_json_bytes=1000))
    edge.add("echo", new_edge.echo("FP32"))
    with edge.running():
        url = f"{edge.url}/v2/models/echo/infer"
        refused(
            httpx.post(url, content=body_of(500), timeout=60),
            413,
            "the limit is 1000 (--max-json-bytes); send tensors as binary",
        )
        packed = gzip.compress(body_of(500))
        refused(
            httpx.post(url, content=packed, headers={"content-encoding": "gzip"}, timeout=60), 413, "--max-json-bytes"
        )
        assert httpx.post(url, content=body_of(5), timeout=60).status_code == 200
        encoded = binary_of(5000)
        assert httpx.post(url, content=encoded.body, headers=encoded.headers, timeout=60).status_code == 200


def test_a_json_answer_of_too_many_elements_is_refused_and_binary_data_is_not(ask, monkeypatch):
    monkeypatch.setattr(v2, "MAX_JSON_ELEMENTS", 1000)
    encoded = binary_of(501)
    refused(ask(encoded.body, **encoded.headers), 400, "'y' have 1002 elements, JSON carries at most 1000")
    asked = encode_request(InferRequest({"x": Tensor("FP32", np.zeros((501, 2), np.float32))}, binary_output=True))
    assert ask(asked.body, **asked.headers).status_code == 200
    assert ask(body_of(500)).status_code == 200


def test_a_body_beyond_the_limit_is_413_before_it_is_read(ask):
    refused(ask(bytes(9 * 2**20)), 413, "at most 8388608 bytes")


def test_one_model_that_has_all_it_may_leaves_the_others_alone(new_edge):
    edge = new_edge(limits=RouterLimits(max_in_flight=2))
    edge.add("slow", new_edge.echo("FP32", gate=edge.gate))
    edge.add("chain", new_edge.echo("FP32", gate=edge.gate), new_edge.echo("FP32"))
    with edge.running():
        url = f"{edge.url}/v2/models/slow/infer"
        answers = []
        asking = [
            threading.Thread(target=lambda: answers.append(httpx.post(url, content=body_of(), timeout=60)))
            for _ in range(2)
        ]
        for thread in asking:
            thread.start()
        until(lambda: edge.queue.pending == 2)
        response = httpx.post(url, content=body_of(), timeout=60)
        refused(response, 503, "model slow has 2 requests under way, the limit is 2 (--max-in-flight)")
        assert response.headers["retry-after"] == "1"
        late = httpx.post(
            f"{edge.url}/v2/models/chain/infer", content=body_of(), headers={"x-ipnext-deadline-ms": "50"}, timeout=60
        )
        assert late.status_code == 504, "let in, though its host is busy"
        edge.gate.set()
        for thread in asking:
            thread.join(PATIENCE_SECONDS)
        assert [answer.status_code for answer in answers] == [200, 200]
        assert httpx.post(url, content=body_of(), timeout=60).status_code == 200


def test_a_full_queue_of_the_host_is_503_with_retry_after(new_edge):
    edge = new_edge(waiting=0)
    [part] = edge.add("slow", new_edge.echo("FP32", gate=edge.gate))
    with edge.running():
        url = f"{edge.url}/v2/models/slow/infer"
        first = threading.Thread(target=lambda: httpx.post(url, content=body_of(), timeout=60))
        first.start()
        until(lambda: part.seen)
        response = httpx.post(url, content=body_of(), timeout=60)
        refused(response, 503, "the queue is full with 1 requests")
        assert response.headers["retry-after"] == "1"
        edge.gate.set()
        first.join(PATIENCE_SECONDS)


@pytest.mark.parametrize("parts", [1, 2])
def test_a_client_that_leaves_takes_its_work_out_of_the_hosts_queue(new_edge, parts):
    edge = new_edge()
    chain = edge.add("slow", *[new_edge.echo("FP32", gate=edge.gate) for _ in range(parts)])
    with edge.running():
        url = f"{edge.url}/v2/models/slow/infer"
        first = threading.Thread(target=lambda: httpx.post(url, content=body_of(1), timeout=60))
        first.start()
        until(lambda: chain[0].seen)
        with edge.asking("slow", body_of(7)):
            until(lambda: edge.queue.pending == 2)
        until(lambda: [job.future.cancelled() for job in edge.queue._waiting] == [True])
        edge.gate.set()
        first.join(PATIENCE_SECONDS)
        until(lambda: edge.queue.pending == 0)
    assert [array.shape[0] for array in chain[0].seen] == [1], "the request of seven rows never ran"
    counts = edge.metrics.generations["slow", 1]
    assert {status: one.seconds.count for status, one in counts.answers.items()} == {200: 1, 499: 1}


def test_binary_answers_agree_with_json_ones(ask):
    encoded = binary_of(3)
    response = ask(encoded.body, **encoded.headers)
    assert response.headers["content-type"] == "application/json", "JSON unless the request asks for binary data"
    asked = encode_request(InferRequest({"x": Tensor("FP32", np.full((3, 2), 0.5, np.float32))}, binary_output=True))
    answer = ask(asked.body, **asked.headers)
    decoded = decode_response(answer.content, parse_header_length(answer.headers[LENGTH]))
    assert decoded.outputs["y"].data.ravel().tolist() == response.json()["outputs"][0]["data"]
