"""Requests that a host or engine gets alike are the same, however they were written."""

import numpy as np
import orjson
import pytest

from serving.protocol.tensors import Tensor
from serving.protocol.v2 import InferRequest, encode_request
from serving.routing.lost_requests import LostRequests
from serving.routing.request_identity import openai_identity, v2_identity

INPUTS = {
    "x": Tensor("FP32", np.array([[1.0, 2.0], [3.0, 4.0]], np.float32)),
    "ids": Tensor("INT64", np.array([7, 8], np.int64)),
    "words": Tensor("BYTES", np.array([b"a", b"bc"], object)),
}


def key(identity):
    return LostRequests().of("m", lambda: identity).key


def of_v2(inputs=INPUTS, *, binary, **more):
    encoded = encode_request(InferRequest(inputs, **more), binary=binary)
    return key(v2_identity(bytearray(encoded.body), encoded.header_length))


@pytest.fixture
def same():
    return of_v2(binary=True)


def test_tensors_are_the_same_as_json_and_as_binary_data_in_any_order(same):
    assert of_v2(binary=False) == same
    assert of_v2(dict(reversed(INPUTS.items())), binary=True) == same
    assert of_v2(binary=True, id="another", parameters={"timeout": 5}) == same


def test_json_of_tensors_is_the_same_with_spaces_and_in_another_form(same):
    document = orjson.loads(encode_request(InferRequest(INPUTS), binary=False).body)
    spaced = orjson.dumps(document, option=orjson.OPT_INDENT_2 | orjson.OPT_SORT_KEYS)
    assert key(v2_identity(bytearray(spaced), None)) == same
    document["inputs"][0]["data"] = [[1, 2], [3, 4]]
    assert key(v2_identity(bytearray(orjson.dumps(document)), None)) == same


@pytest.mark.parametrize(
    "changed",
    [
        {"x": Tensor("FP32", np.array([[1.0, 2.0], [3.0, 5.0]], np.float32))},
        {"x": Tensor("FP32", np.array([[1.0, 2.0, 3.0, 4.0]], np.float32))},
        {"ids": Tensor("INT32", np.array([7, 8], np.int32))},
        {"words": Tensor("BYTES", np.array([b"ab", b"c"], object))},
    ],
    ids=["a number", "a shape", "a datatype", "a word"],
)
def test_other_tensors_are_another_request(same, changed):
    assert of_v2(INPUTS | changed, binary=True) != same


def test_a_body_that_cannot_be_decoded_is_known_by_its_bytes():
    assert key(v2_identity(bytearray(b"no JSON"), None)) == key((b"no JSON",))


@pytest.mark.parametrize("more", [{"seed": 2}, {"seed": None}, {"prompt": "b"}, {"model": "m:style"}])
def test_what_an_engine_reads_makes_another_openai_request(more):
    body = {"model": "m", "prompt": "a", "seed": 1}
    assert openai_identity(body | more, b"") != openai_identity(body, b"")


@pytest.mark.parametrize("number", [b"1", b"9223372036854775808", b"18446744073709549568", b"-9223372036854775808"])
def test_a_whole_number_is_the_same_with_a_fraction_of_zero(number):
    plain, fraction = (orjson.loads(b'{"seed": %s}' % text) for text in (number, number + b".0"))
    assert openai_identity(plain, b"a") == openai_identity(fraction, b"b")


def test_a_body_that_cannot_be_written_is_known_by_its_bytes():
    assert openai_identity({"seed": 2**64}, b"as sent") == b"as sent"
