"""The V2 codec: what goes in comes out, and any other bytes are refused with InvalidInput."""

import json
import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from ipnext.errors import InvalidInput, IPnextError
from ipnext.model.registry.registry import Signature, TensorSpec
from serving.protocol.tensors import DTYPES, FLOATS, Tensor, all_finite, bf16_to_float32, float32_to_bf16
from serving.protocol.v2 import (
    InferRequest,
    InferResponse,
    RequestedOutput,
    decode_request,
    decode_response,
    encode_request,
    encode_response,
    parse_header_length,
)

SHAPES = hnp.array_shapes(min_dims=0, max_dims=3, min_side=0, max_side=4)


@st.composite
def tensors(draw, *, finite: bool):
    datatype = draw(st.sampled_from(sorted(DTYPES)))
    shape = draw(SHAPES)
    if datatype == "BYTES":
        data = np.empty(math.prod(shape), np.object_)
        elements = st.text(max_size=4).map(str.encode) if finite else st.binary(max_size=4)
        data[:] = draw(st.lists(elements, min_size=data.size, max_size=data.size))
        return Tensor(datatype, data.reshape(shape))
    plain = {"allow_nan": not finite, "allow_infinity": not finite} if datatype in FLOATS - {"BF16"} else {}
    tensor = Tensor(datatype, draw(hnp.arrays(DTYPES[datatype], shape, elements=plain or None)))
    if finite and not all_finite(tensor):
        return Tensor(datatype, np.zeros(shape, DTYPES[datatype]))
    return tensor


def named(strategy):
    return st.dictionaries(st.text(min_size=1, max_size=6), strategy, min_size=1, max_size=3)


def same(left: Tensor, right: Tensor) -> bool:
    if left.datatype == "BYTES":
        return left.shape == right.shape and list(left.data.ravel()) == list(right.data.ravel())
    return (left.datatype, left.shape, left.data.tobytes()) == (right.datatype, right.shape, right.data.tobytes())


def assert_same(left, right):
    assert list(left) == list(right)
    assert all(same(left[name], right[name]) for name in left)


@given(named(tensors(finite=False)), st.none() | st.text(max_size=5), st.booleans())
def test_a_binary_request_comes_back_bit_for_bit(inputs, identity, everything):
    request = InferRequest(inputs, (RequestedOutput("a", binary=True),), identity, {"p": 1}, everything)
    encoded = encode_request(request)
    decoded = decode_request(bytearray(encoded.body), encoded.header_length)
    assert_same(decoded.inputs, inputs)
    assert (decoded.id, decoded.outputs, decoded.binary_output) == (identity, request.outputs, everything)


@given(named(tensors(finite=True)))
def test_a_json_request_comes_back_bit_for_bit(inputs):
    encoded = encode_request(InferRequest(inputs), binary=False)
    assert encoded.header_length is None
    assert_same(decode_request(encoded.body).inputs, inputs)


@given(named(tensors(finite=True)), st.data())
def test_an_answer_comes_back_with_any_mix_of_json_and_binary(outputs, data):
    binary = data.draw(st.sets(st.sampled_from(sorted(outputs))))
    response = InferResponse("m", outputs, "7", "id", {"generation": 7})
    encoded = encode_response(response, binary=binary)
    decoded = decode_response(bytearray(encoded.body), encoded.header_length)
    assert_same(decoded.outputs, outputs)
    assert (decoded.model_name, decoded.model_version, decoded.id, decoded.parameters) == (
        "m",
        "7",
        "id",
        {"generation": 7},
    )


@given(st.binary(max_size=200), st.none() | st.integers(-5, 250))
def test_random_bytes_are_refused_and_nothing_else(body, length):
    for decode in (decode_request, decode_response):
        with pytest.raises(InvalidInput):
            decode(body, length)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=4) | st.sampled_from(sorted(DTYPES)),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.sampled_from(
        ["name", "shape", "datatype", "data", "parameters", "binary_data_size", "inputs", "outputs", "id"]
    ), inner, max_size=5),
    max_leaves=15,
)  # fmt: skip
ENTRY = st.fixed_dictionaries(
    {"name": st.sampled_from(["a", "b", 3]), "shape": st.lists(st.integers(-1, 2**40), max_size=3) | JSON},
    optional={
        "datatype": st.sampled_from([*sorted(DTYPES), "FP8"]),
        "data": st.lists(JSON, max_size=4) | JSON,
        "parameters": st.fixed_dictionaries({}, optional={"binary_data_size": st.integers(-1, 20) | JSON}) | JSON,
    },
)


@settings(max_examples=300)
@given(
    st.fixed_dictionaries({"inputs": st.lists(ENTRY, max_size=3) | JSON}, optional={"outputs": JSON, "id": JSON}),
    st.binary(max_size=24),
)
def test_near_requests_are_read_or_refused_and_never_crash(document, tail):
    header = json.dumps(document).encode()
    for body, length in ((header, None), (header + tail, len(header)), (header + tail, len(header) - 1)):
        try:
            decode_request(body, length)
        except InvalidInput:
            continue


@given(named(tensors(finite=False)), st.data())
def test_a_truncated_or_lengthened_binary_body_is_refused(inputs, data):
    encoded = encode_request(InferRequest(inputs))
    cut = data.draw(st.integers(0, len(encoded.body) - 1))
    for body in (encoded.body[:cut], encoded.body + b"x"):
        with pytest.raises(InvalidInput):
            decode_request(body, encoded.header_length)


def request_of(**entry) -> bytes:
    return json.dumps({"inputs": [{"name": "x", "datatype": "FP32", "shape": [2], "data": [1, 2], **entry}]}).encode()


@pytest.mark.parametrize(
    ("entry", "words"),
    [
        ({"datatype": "FP8"}, "datatype 'FP8' is not one of BOOL"),
        ({"datatype": None}, "datatype None"),
        ({"shape": [3]}, "shape [3] holds 3 elements, got 2"),
        ({"shape": [-2]}, "must be a list of at most 32 whole numbers, each from 0 to 2147483647"),
        ({"shape": [2**31]}, "each from 0 to 2147483647"),
        ({"shape": [True, 2]}, "whole numbers"),
        ({"shape": "2"}, "whole numbers"),
        ({"data": [1, "2"]}, "FP32 data must be numbers, got '2'"),
        ({"data": [1, True]}, "FP32 data must be numbers, got True"),
        ({"data": [1e39, 1]}, "beyond the range of FP32"),
        ({"data": [10**400, 1]}, "does not fit FP32"),
        ({"datatype": "FP16", "data": [70000, 1]}, "beyond the range of FP16"),
        ({"datatype": "INT8", "data": [1, 128]}, "does not fit INT8"),
        ({"datatype": "UINT64", "data": [1, -1]}, "does not fit UINT64"),
        ({"datatype": "INT64", "data": [1, 2.0]}, "INT64 data must be whole numbers, got 2.0"),
        ({"datatype": "BOOL", "data": [1, 0]}, "BOOL data must be true or false, got 1"),
        ({"datatype": "BYTES", "data": ["a", 1]}, "BYTES data must be strings, got 1"),
        ({"datatype": "BYTES", "data": ["a", "\ud800"]}, "does not fit BYTES"),
        ({"data": {"a": 1}}, "data must be a list"),
        ({"data": None}, "data must be a list"),
        ({"shape": [2, 2], "data": [[1, 2], [3]]}, "rows of one length"),
        ({"shape": [2, 2], "data": [[1], [2], [3], [4]]}, "nested as [4, 1], its shape says [2, 2]"),
        ({"parameters": {"binary_data_size": 8}}, "and then there is no data"),
        ({"parameters": 3}, "x.parameters: must be an object"),
        ({"shape": [0, 2**31 - 1, 2**31 - 1, 2**31 - 1], "data": []}, "is too large"),
    ],
)
def test_a_bad_tensor_is_refused_by_name(entry, words):
    with pytest.raises(InvalidInput) as refusal:
        decode_request(request_of(**entry))
    assert words in refusal.value.message
    assert "x" in refusal.value.message


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (b"", "not JSON"),
        (b"[]", "must be a JSON object, got list"),
        (b"{}", "inputs: must be a list of tensors"),
        (b'{"inputs": []}', "at least one tensor"),
        (b'{"inputs": [3]}', "must be a list of tensors"),
        (b'{"inputs": [{"name": ""}]}', "each tensor needs a name"),
        (b'{"inputs": [{"name":"x","datatype":"FP32","shape":[1],"data":[NaN]}]}', "tensor 'x': an element is NaN"),
        (
            b'{"inputs": [{"name":"x","datatype":"FP32","shape":[1],"data":[-Infinity]}]}',
            "tensor 'x': an element is NaN or lies",
        ),
        (b'{"inputs": [{"name":"x","datatype":"FP32","shape":[1],"data":[1e999]}]}', "beyond the range"),
        (b'{"inputs": ' + b"[" * 100_000, "not JSON"),
        (b'{"inputs": ' + b"9" * 5000 + b"}", "a whole number of more than 4300 digits"),
        (b'{"inputs": [' + request_of()[12:-2] + b"," + request_of()[12:-2] + b"]}", "given twice"),
        (b'{"id": 3, "inputs": [' + request_of()[12:-2] + b"]}", "id: must be a string of Unicode text"),
        (b'{"parameters": {"binary_data_output": 1}, "inputs": []}', "must be true or false"),
        (b'{"outputs": [{}], "inputs": [' + request_of()[12:-2] + b"]}", "outputs: each tensor needs a name"),
    ],
)
def test_a_bad_document_is_refused(body, words):
    with pytest.raises(InvalidInput) as refusal:
        decode_request(body)
    assert words in refusal.value.message


@pytest.mark.parametrize("text", ["", "-1", "1.0", "٣", "1" * 30, "0x1"])
def test_a_header_length_that_is_no_number_is_refused(text):
    with pytest.raises(InvalidInput, match="inference-header-content-length"):
        parse_header_length(text)


@pytest.mark.parametrize(("digits", "taken"), [(1, True), (18, True), (19, False)])
def test_a_header_length_has_at_most_eighteen_digits(digits, taken):
    if taken:
        assert parse_header_length("9" * digits) == 10**digits - 1
    else:
        with pytest.raises(InvalidInput, match="must be a whole number of bytes"):
            parse_header_length("9" * digits)


@pytest.mark.parametrize("length", [0, -3, 10_000])
def test_a_header_length_outside_the_body_is_refused(length):
    with pytest.raises(InvalidInput, match="must be from 1 to"):
        decode_request(request_of(), length)


def test_binary_data_that_a_header_promises_must_be_there():
    entry = {"name": "x", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": 8}}
    with pytest.raises(InvalidInput, match=r"'x'.* 0 bytes of binary data are left"):
        decode_request(json.dumps({"inputs": [entry]}).encode())


@pytest.mark.parametrize("size", [0, 4, 7, 12])
def test_binary_data_of_another_size_than_the_shape_takes_is_refused(size):
    entry = {"name": "x", "datatype": "FP32", "shape": [2], "parameters": {"binary_data_size": size}}
    header = json.dumps({"inputs": [entry]}).encode()
    with pytest.raises(InvalidInput, match=rf"'x': FP32 of shape \[2\] takes 8 bytes, got {size}"):
        decode_request(header + bytes(size), len(header))


@pytest.mark.parametrize("datatype", sorted(DTYPES))
@pytest.mark.parametrize("shape", [[2**31 - 1, 0, 2**31 - 1], [2**31 - 1, 2**31 - 1, 2**31 - 1, 0]])
def test_an_empty_tensor_of_absurd_sizes_is_refused_by_name(datatype, shape):
    for entry in ({"data": []}, {"parameters": {"binary_data_size": 0}}):
        header = json.dumps({"inputs": [{"name": "x", "datatype": datatype, "shape": shape, **entry}]}).encode()
        with pytest.raises(InvalidInput, match=r"'x': shape .* is too large"):
            decode_request(header, len(header))


def bytes_request(count, size):
    entry = {"name": "x", "datatype": "BYTES", "shape": [count], "parameters": {"binary_data_size": size}}
    header = json.dumps({"inputs": [entry]}).encode()
    return header + bytes(size), len(header)


@pytest.mark.parametrize(("count", "size"), [(1, 8), (2, 4), (0, 4), (1, 3)])
def test_bytes_elements_are_as_many_as_the_shape_says(count, size):
    with pytest.raises(InvalidInput, match=rf"'x': BYTES data must be {count} elements"):
        decode_request(*bytes_request(count, size))


def test_more_bytes_elements_than_are_read_in_an_instant_are_refused_unread(monkeypatch):
    monkeypatch.setattr("serving.protocol.tensors._LENGTH", None)
    with pytest.raises(InvalidInput, match=r"'x': BYTES data has at most 262144 elements, got 262145"):
        decode_request(*bytes_request(262_145, 4 * 262_145))


@pytest.mark.parametrize(("name", "refused"), [("x", "datatype must be FP32, got BYTES"), ("y", "'y' does not exist")])
def test_bytes_for_what_takes_none_are_refused_unread(monkeypatch, name, refused):
    monkeypatch.setattr("serving.protocol.tensors._LENGTH", None)
    body, length = bytes_request(2, 8)
    signature = Signature(
        inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1,)),),
        outputs=(TensorSpec(name="z", datatype="FP32", shape=(-1,)),),
    )
    with pytest.raises(InvalidInput, match=refused):
        decode_request(body.replace(b'"x"', f'"{name}"'.encode()), length, signature)


def test_a_bool_byte_other_than_0_or_1_is_refused():
    entry = {"name": "x", "datatype": "BOOL", "shape": [1], "parameters": {"binary_data_size": 1}}
    header = json.dumps({"inputs": [entry]}).encode()
    with pytest.raises(InvalidInput, match=r"'x'.*0 or 1"):
        decode_request(header + b"\x02", len(header))


def test_nan_passes_in_binary_and_an_answer_refuses_it_as_json():
    nan = Tensor("FP32", np.array([np.nan], np.float32))
    encoded = encode_request(InferRequest({"x": nan}))
    assert np.isnan(decode_request(encoded.body, encoded.header_length).inputs["x"].data).all()
    with pytest.raises(IPnextError, match="'x' holds NaN") as failure:
        encode_response(InferResponse("m", {"x": nan}))
    assert failure.value.http_status == 500


def test_arrays_over_a_writable_body_are_writable_aligned_and_share_its_memory():
    encoded = encode_request(InferRequest({"x": Tensor("FP64", np.arange(3.0))}))
    body = bytearray(encoded.body)
    array = decode_request(body, encoded.header_length).inputs["x"].data
    body[-8:] = bytes(8)
    assert array.tolist() == [0.0, 1.0, 0.0]
    assert array.flags.writeable
    assert encoded.header_length % 8 == 0


def test_only_the_wanted_outputs_come_back_in_the_wanted_form():
    document = json.loads(request_of()) | {
        "outputs": [{"name": "b", "parameters": {"binary_data": True}}, {"name": "a"}]
    }
    request = decode_request(json.dumps(document).encode())
    outputs = {name: Tensor("INT64", np.zeros(1, np.int64)) for name in "abc"}
    assert list(request.select(outputs)) == ["b", "a"]
    assert request.binary_names(outputs) == {"b"}
    with pytest.raises(InvalidInput, match="'b' does not exist; the outputs are c"):
        request.check_outputs(["c"])


def test_binary_data_output_asks_for_all_outputs_as_binary():
    document = json.loads(request_of()) | {"parameters": {"binary_data_output": True}}
    request = decode_request(json.dumps(document).encode())
    assert request.binary_names(["a", "b"]) == {"a", "b"}


def test_outputs_are_json_unless_the_request_asks_for_binary_data():
    assert InferRequest({}).binary_names(["a", "b"]) == frozenset()


@pytest.mark.parametrize(
    ("parameters", "seconds"),
    [({}, 5.0), ({"timeout": 0}, 5.0), ({"timeout": 2_000_000}, 2.0), ({"timeout": 9_000_000}, 5.0)],
)
def test_a_timeout_in_microseconds_shortens_the_time_of_a_request(parameters, seconds):
    assert InferRequest({}, parameters=parameters).seconds(5.0) == seconds


@pytest.mark.parametrize("timeout", [-1, 1.5, True, "1", None])
def test_a_timeout_that_is_no_whole_number_is_refused(timeout):
    with pytest.raises(InvalidInput, match="timeout: must be whole microseconds"):
        InferRequest({}, parameters={"timeout": timeout}).seconds(5.0)


@given(hnp.arrays(np.float32, 8))
def test_bf16_rounds_to_the_nearest_even_value_and_keeps_nan(values):
    bits = float32_to_bf16(values)
    back = bf16_to_float32(bits)
    assert (np.isnan(back) == np.isnan(values)).all()
    assert (float32_to_bf16(back) == bits)[~np.isnan(values)].all()
