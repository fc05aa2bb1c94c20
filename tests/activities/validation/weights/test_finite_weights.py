"""Finding the one number that is not finite, in every dtype, without torch."""

import io
import json
import struct

import numpy as np
import pytest
from safetensors.numpy import save

from activities.validation.validator import CHUNK_BYTES
from activities.validation.weights.finite_weights import check_finite, non_finite_tensor
from ipnext.artifacts.checkpoints.reader import layer_numbers
from ipnext.artifacts.checkpoints.tensor_headers import ITEM_BYTES, LARGEST_HEADER_BYTES, MalformedTensors, read_places
from ipnext.model.lifecycle.status import Reason

pytestmark = pytest.mark.trust


def raw(dtype: str, content: bytes, *, name: str = "w") -> bytes:
    """A safetensors file with one tensor, written by hand: numpy lacks some of the dtypes."""
    shape = [len(content) // ITEM_BYTES[dtype]]
    header = json.dumps({name: {"dtype": dtype, "shape": shape, "data_offsets": [0, len(content)]}}).encode()
    return struct.pack("<Q", len(header)) + header + content


def found_in(content: bytes) -> str | None:
    return non_finite_tensor(io.BytesIO(content), len(content), lambda _: None)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64])
@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_single_non_finite_number_is_found_by_tensor(dtype, value):
    good, bad = np.ones((3, 5), dtype), np.ones((3, 5), dtype)
    bad[1, 2] = value

    assert found_in(save({"a": good, "layers.7.bias": bad})) == "layers.7.bias"


@pytest.mark.parametrize(
    ("dtype", "finite", "not_finite"),
    [
        ("BF16", struct.pack("<HH", 0x3F80, 0x7F7F), struct.pack("<HH", 0x3F80, 0x7FC0)),
        ("BF16", struct.pack("<HH", 0xFF7F, 0x0000), struct.pack("<HH", 0xFF80, 0x0000)),
        ("F8_E5M2", bytes([0x7B, 0x00]), bytes([0x7C, 0x00])),
        ("F8_E4M3", bytes([0x7E, 0xFE]), bytes([0x7E, 0xFF])),
    ],
)
def test_small_floats_are_judged_by_their_bits(dtype, finite, not_finite):
    assert found_in(raw(dtype, finite)) is None
    assert found_in(raw(dtype, not_finite)) == "w"


def test_integers_of_any_bits_are_finite():
    assert found_in(save({"ids": np.full(8, -1, np.int64), "mask": np.ones(3, bool)})) is None


def test_a_number_behind_the_first_chunk_is_found():
    large = np.zeros(CHUNK_BYTES // 4 + 10, np.float32)
    large[-1] = np.nan

    assert found_in(save({"large": large})) == "large"


@pytest.mark.parametrize(
    "content",
    [
        b"",
        struct.pack("<Q", 10**15),
        struct.pack("<Q", 4) + b"nope",
        struct.pack("<Q", 2) + b"[]",
        raw("F32", b"\0" * 8)[:-3],
        raw("F32", b"\0" * 8).replace(b"[0, 8]", b"[4, 2]"),
        raw("F32", b"\0" * 8).replace(b"[0, 8]", b"[0,99]"),
        raw("F32", b"\0" * 8).replace(b"[0, 8]", b"[0, 7]"),
        struct.pack("<Q", LARGEST_HEADER_BYTES + 2) + b"{" + b" " * LARGEST_HEADER_BYTES + b"}",
        struct.pack("<Q", 3_000_003) + b"{" + b"[" * 3_000_001 + b"}",
    ],
    ids=["empty", "huge header", "no JSON", "no object", "cut", "backwards", "outside", "half", "large", "many"],
)
def test_a_file_that_is_not_of_the_format_is_refused(content):
    with pytest.raises(MalformedTensors):
        found_in(content)


def test_the_check_names_part_and_tensor(candidate, house, kit):
    dense = house.source(kit.DENSE, kit.weights(3, value=float("nan")))

    results = {result.subject: result for result in check_finite(candidate(dense=dense))}

    assert results["sparse/weights.safetensors"].passed
    refused = results["dense/weights.safetensors"]
    assert (refused.passed, refused.reason) == (False, Reason.NON_FINITE_WEIGHTS)
    assert "'bias' of part 'dense'" in refused.message


@pytest.mark.parametrize(
    "entry",
    [
        {"dtype": "F32", "shape": [10**4200], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [-1], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [True], "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1] * 65, "data_offsets": [0, 4]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 1e999]},
        {"dtype": "F32", "shape": [1], "data_offsets": [0, 2**63]},
        {"dtype": "F32", "shape": {"a": 1}, "data_offsets": [0, 4]},
    ],
)
def test_numbers_of_a_header_are_bounded(entry):
    header = json.dumps({"w": entry}).encode()
    content = len(header).to_bytes(8, "little") + header + bytes(4)
    with pytest.raises(MalformedTensors, match="tensor 'w' has no dtype, shape and offsets"):
        read_places(io.BytesIO(content), len(content))


def test_a_layer_is_a_short_number_of_digits():
    names = ["model.layers.3.w", "h.\u00b2.w", f"h.{'9' * 5000}.w", "h.12.w"]
    assert sorted(layer_numbers(dict.fromkeys(names))) == [3, 12]
