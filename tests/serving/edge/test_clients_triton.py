"""NVIDIA's own client, unmodified, against the edge: everything that it can send is answered or refused in words."""

import asyncio

import numpy as np
import pytest

from serving.protocol.tensors import DTYPES, bf16_to_float32, float32_to_bf16
from tests.waiting import eventually

triton = pytest.importorskip(
    "tritonclient.http", reason="needs the package tritonclient[http]; `make setup` installs it"
)
aio = pytest.importorskip(
    "tritonclient.http.aio", reason="needs the package tritonclient[http]; `make setup` installs it"
)
from tritonclient.utils import InferenceServerException  # noqa: E402  # after the skip

VALUES = {
    "BOOL": [[True, False], [False, True]],
    "BYTES": [[b"one", b""], [b"\x00\xff", "grün".encode()]],
    **{f"INT{bits}": [[-(2 ** (bits - 1)), 2 ** (bits - 1) - 1], [0, -1]] for bits in (8, 16, 32, 64)},
    **{f"UINT{bits}": [[2**bits - 1, 0], [1, 2]] for bits in (8, 16, 32, 64)},
    "FP16": [[0.1, -65504.0], [6e-8, 1.0]],
    "BF16": [[0.1, -3e38], [1e-38, 1.0]],
    "FP32": [[0.1, -3e38], [1e-45, 1.0]],
    "FP64": [[0.1, -1e308], [5e-324, 1.0]],
}
DATATYPES = sorted(DTYPES)


def values(datatype):
    if datatype == "BF16":  # the client takes and gives float32, of which it sends the upper half
        return bf16_to_float32(float32_to_bf16(np.array(VALUES[datatype], np.float32)))
    return np.array(VALUES[datatype], DTYPES[datatype])


def tensor(module, datatype, *, binary, rows=None):
    array = values(datatype) if rows is None else rows
    made = module.InferInput("x", list(array.shape), datatype)
    if datatype == "BYTES" and not binary:
        array = np.array([[b"one", b""], [b"two", "grün".encode()]], np.object_)
    made.set_data_from_numpy(array, binary_data=binary)
    return made, array


@pytest.fixture
def client(edge):
    client = triton.InferenceServerClient(edge.address)
    yield client
    client.close()


FORMS = [
    (datatype, sent, asked)
    for datatype in sorted(DTYPES)
    for sent in ("binary", "json")
    for asked in ("binary", "json")
    if datatype not in ("FP16", "BF16") or (sent, asked) == ("binary", "binary")  # the client has no JSON form of them
    if datatype != "BYTES" or (sent, asked) != ("binary", "json")  # bytes that are no text have no JSON form
]


@pytest.mark.parametrize("model", ["echo", "chain"])
@pytest.mark.parametrize(("datatype", "sent", "asked"), FORMS)
def test_every_datatype_comes_back_bit_for_bit(client, model, datatype, sent, asked):
    given, array = tensor(triton, datatype, binary=sent == "binary")
    outputs = [triton.InferRequestedOutput("y", binary_data=asked == "binary")]
    result = client.infer(f"{model}-{datatype.lower()}", [given], outputs=outputs, request_id="r7")
    got = result.as_numpy("y")
    assert got.shape == array.shape
    if datatype == "BYTES":
        elements = [element if isinstance(element, bytes) else element.encode() for element in got.ravel()]
        assert elements == list(array.ravel())
    else:
        assert got.tobytes() == array.tobytes()
    response = result.get_response()
    assert (response["id"], response["model_version"]) == ("r7", "2")
    assert result.get_output("y")["datatype"] == datatype


@pytest.mark.parametrize(("x_binary", "z_binary"), [(True, False), (False, True), (True, True)])
def test_one_request_may_mix_json_and_binary_tensors_and_so_may_its_answer(client, x_binary, z_binary):
    x, numbers = tensor(triton, "FP32", binary=x_binary)
    z = triton.InferInput("z", [2, 2], "BYTES")
    words = np.array([[b"a", b"bb"], [b"", b"dddd"]], np.object_)
    z.set_data_from_numpy(words, binary_data=z_binary)
    outputs = [
        triton.InferRequestedOutput("w", binary_data=x_binary),
        triton.InferRequestedOutput("y", binary_data=z_binary),
    ]
    result = client.infer("twin", [x, z], outputs=outputs)
    assert result.as_numpy("y").tobytes() == numbers.tobytes()
    assert [str(word, "ascii") if isinstance(word, bytes) else word for word in result.as_numpy("w").ravel()] == [
        "a", "bb", "", "dddd",
    ]  # fmt: skip
    assert [one["name"] for one in result.get_response()["outputs"]] == ["w", "y"]


def test_the_server_and_its_models_describe_themselves(client):
    assert client.is_server_live()
    assert client.is_server_ready()
    assert client.is_model_ready("chain-fp32")
    assert client.is_model_ready("chain-fp32", "1")
    assert not client.is_model_ready("chain-fp32", "9")
    assert not client.is_model_ready("absent")
    assert client.get_server_metadata()["name"] == "ipnext"
    about = client.get_model_metadata("twin")
    assert about["inputs"] == [
        {"name": "x", "datatype": "FP32", "shape": [-1, 2]},
        {"name": "z", "datatype": "BYTES", "shape": [-1, 2]},
    ]
    assert [one["name"] for one in about["outputs"]] == ["y", "w"]
    assert client.get_model_metadata("echo-fp32", "1")["versions"] == ["1", "2"]


def test_the_repository_index_lists_every_generation(client):
    index = client.get_model_repository_index()
    assert {"name": "echo-fp32", "version": "1", "state": "READY", "reason": ""} in index
    assert {"name": "nan", "version": "1", "state": "READY", "reason": ""} in index


def test_statistics_count_successes_and_failures_of_one_generation(client):
    def stats():
        [found] = client.get_inference_statistics("echo-int8", "1")["model_stats"]
        return found["inference_stats"]

    given, _ = tensor(triton, "INT8", binary=True)
    client.infer("echo-int8", [given], model_version="1")
    before = stats()
    client.infer("echo-int8", [given], model_version="1")
    with pytest.raises(InferenceServerException):
        client.infer("echo-int8", [tensor(triton, "INT16", binary=True)[0]], model_version="1")
    after = stats()
    assert after["success"]["count"] - before["success"]["count"] == 1
    assert after["fail"]["count"] - before["fail"]["count"] == 1
    assert after["success"]["ns"] > before["success"]["ns"]
    assert {one["name"] for one in client.get_inference_statistics()["model_stats"]} >= {"echo-int8"}


@pytest.mark.parametrize("coding", ["gzip", "deflate"])
@pytest.mark.parametrize("rows", [1, 20_000])
def test_packed_requests_and_answers(client, coding, rows):
    array = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    given, _ = tensor(triton, "FP32", binary=True, rows=array)
    result = client.infer(
        "chain-fp32", [given], request_compression_algorithm=coding, response_compression_algorithm=coding
    )
    assert result.as_numpy("y").tobytes() == array.tobytes()


UNSUPPORTED = {
    "load": lambda client: client.load_model("echo-fp32"),
    "unload": lambda client: client.unload_model("echo-fp32"),
    "config": lambda client: client.get_model_config("echo-fp32"),
    "config of a version": lambda client: client.get_model_config("echo-fp32", "1"),
    "system shared memory": lambda client: client.register_system_shared_memory("r", "/k", 8),
    "its status": lambda client: client.get_system_shared_memory_status(),
    "cuda shared memory": lambda client: client.get_cuda_shared_memory_status(),
    "trace": lambda client: client.get_trace_settings(),
    "trace of a model": lambda client: client.get_trace_settings("echo-fp32"),
    "log": lambda client: client.get_log_settings(),
}


@pytest.mark.parametrize("call", UNSUPPORTED.values(), ids=UNSUPPORTED)
def test_an_extension_that_is_not_served_is_refused_in_words(client, call):
    with pytest.raises(InferenceServerException, match=r"not supported: .+") as refusal:
        call(client)
    assert refusal.value.status() == "400"


def shared_input(client, model):
    given = triton.InferInput("x", [2, 2], "FP32")
    given.set_shared_memory("region", 16)
    client.infer(model, [given])


def shared_output(client, model):
    wanted = triton.InferRequestedOutput("y")
    wanted.set_shared_memory("region", 16)
    client.infer(model, [tensor(triton, "FP32", binary=True)[0]], outputs=[wanted])


def classes(client, model):
    wanted = triton.InferRequestedOutput("y", class_count=2)
    client.infer(model, [tensor(triton, "FP32", binary=True)[0]], outputs=[wanted])


def in_sequence(client, model):
    client.infer(model, [tensor(triton, "FP32", binary=True)[0]], sequence_id=3)


@pytest.mark.parametrize("call", [shared_input, shared_output, classes, in_sequence])
@pytest.mark.parametrize("model", ["echo-fp32", "chain-fp32"])
def test_a_parameter_that_would_change_the_answer_and_is_not_served_is_refused(client, call, model):
    with pytest.raises(InferenceServerException, match="is not supported; ") as refusal:
        call(client, model)
    assert refusal.value.status() == "400"


@pytest.mark.parametrize(
    ("model", "datatype", "rows", "status", "words"),
    [
        ("absent", "FP32", None, "404", "model 'absent' is not served here"),
        ("echo-fp32", "FP64", None, "400", "input 'x': datatype must be FP32, got FP64"),
        ("chain-fp32", "FP64", None, "400", "input 'x': datatype must be FP32, got FP64"),
        ("echo-fp32", "FP32", np.zeros((2, 3), np.float32), "400", r"input 'x': shape must be \[-1, 2\]"),
        ("echo-fp32", "FP32", np.zeros((0, 2), np.float32), "400", "one batch size >= 1"),
    ],
)
def test_the_client_raises_our_words(client, model, datatype, rows, status, words):
    with pytest.raises(InferenceServerException, match=words) as refusal:
        client.infer(model, [tensor(triton, datatype, binary=True, rows=rows)[0]])
    assert refusal.value.status() == status


def test_nan_comes_back_as_binary_data_and_not_as_json(client):
    given, _ = tensor(triton, "FP32", binary=True)
    assert np.isnan(client.infer("nan", [given]).as_numpy("y")).all()
    with pytest.raises(InferenceServerException, match="'y' holds NaN or infinity") as failure:
        client.infer("nan", [given], outputs=[triton.InferRequestedOutput("y", binary_data=False)])
    assert failure.value.status() == "500"


def test_a_generation_is_pinned_by_version_or_header_and_priority_changes_nothing(client):
    given, _ = tensor(triton, "FP32", binary=True)
    assert client.infer("chain-fp32", [given], model_version="1", priority=1).get_response()["model_version"] == "1"
    pinned = client.infer("chain-fp32", [given], headers={"x-ipnext-generation": "1"})
    assert pinned.get_response()["model_version"] == "1"


@pytest.mark.parametrize("parts", [1, 2])
def test_the_clients_timeout_is_a_deadline(new_edge, parts):
    edge = new_edge()
    edge.add("slow", *[new_edge.echo("FP32", gate=edge.gate) for _ in range(parts)])
    with edge.running():
        client = triton.InferenceServerClient(edge.address)
        with pytest.raises(InferenceServerException, match="deadline") as failure:
            client.infer("slow", [tensor(triton, "FP32", binary=True)[0]], timeout=100_000)
        client.close()
    assert failure.value.status() == "504"


def test_async_infer_answers_many_requests_at_once(edge):
    client = triton.InferenceServerClient(edge.address, concurrency=4)
    asked = []
    for number in range(20):
        array = np.full((1, 2), number, np.float32)
        asked.append(client.async_infer("chain-fp32", [tensor(triton, "FP32", binary=True, rows=array)[0]]))
    assert [one.get_result().as_numpy("y")[0, 0] for one in asked] == list(range(20))
    client.close()


async def test_the_asyncio_client_gets_the_same_answers(edge):
    async with aio.InferenceServerClient(edge.address) as client:

        async def ask(number):
            array = np.full((3, 2), number, np.float32)
            result = await client.infer("chain-fp32", [tensor(aio, "FP32", binary=number % 2 == 0, rows=array)[0]])
            return result.as_numpy("y")

        answers = await asyncio.gather(*map(ask, range(20)))
        assert [answer[2, 1] for answer in answers] == list(range(20))
        assert await client.is_model_ready("twin")
        with pytest.raises(InferenceServerException, match="'absent' is not served here"):
            await client.get_model_metadata("absent")


async def test_a_cancelled_request_that_waits_never_runs(new_edge):
    edge = new_edge()
    [part] = edge.add("slow", new_edge.echo("FP32", gate=edge.gate))
    with edge.running():
        async with aio.InferenceServerClient(edge.address) as client:
            first, second = (
                tensor(aio, "FP32", binary=True, rows=np.full((1, 2), number, np.float32))[0] for number in (1, 2)
            )
            running = asyncio.create_task(client.infer("slow", [first]))
            await eventually(lambda: part.seen)
            waiting = asyncio.create_task(client.infer("slow", [second]))
            await eventually(lambda: edge.queue.pending == 2)
            waiting.cancel()
            await eventually(lambda: [job.future.cancelled() for job in edge.queue._waiting] == [True])
            edge.gate.set()
            assert (await running).as_numpy("y")[0, 0] == 1
            await eventually(lambda: edge.queue.pending == 0)
        assert [array[0, 0] for array in part.seen] == [1]
        answers = edge.metrics.generations["slow", 1].answers
        assert {status: one.seconds.count for status, one in answers.items()} == {200: 1, 499: 1}
