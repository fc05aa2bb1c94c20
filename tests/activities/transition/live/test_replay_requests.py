"""Requests in JSON that are made of a replay set."""

import io
import json

import numpy as np
import pytest
from safetensors.numpy import save

from activities.transition.live.replay_requests import UnfitReplay, read_requests
from ipnext.model.registry.registry import Signature, TensorSpec

SIGNATURE = Signature(
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 2)), TensorSpec(name="id", datatype="INT64", shape=(-1,))),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 1)),),
)


def replay(rows, **more):
    tensors = {
        "x": np.arange(2 * rows, dtype=np.float32).reshape(rows, 2),
        "id": np.arange(rows, dtype=np.int64),
        "label.y": np.zeros(rows, np.float32),
    }
    return save({name: data for name, data in (tensors | more).items() if data is not None})


def empty_input(shape):
    """Return a set whose input x has this shape, and no bytes."""
    header = {
        "x": {"dtype": "F32", "shape": shape, "data_offsets": [0, 0]},
        "id": {"dtype": "I64", "shape": [1], "data_offsets": [0, 8]},
    }
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(8)


def read(content, rows):
    return [json.loads(body) for body in read_requests(io.BytesIO(content), len(content), SIGNATURE, rows=rows)]


def test_each_request_has_the_next_rows_of_all_inputs_and_nothing_else():
    found = read(replay(7), 3)
    assert len(found) == 2
    second = {tensor["name"]: tensor for tensor in found[1]["inputs"]}
    assert second == {
        "x": {"name": "x", "datatype": "FP32", "shape": [3, 2], "data": [6.0, 7.0, 8.0, 9.0, 10.0, 11.0]},
        "id": {"name": "id", "datatype": "INT64", "shape": [3], "data": [3, 4, 5]},
    }


def test_a_small_set_gives_one_request_and_a_large_one_few():
    assert [tensor["shape"][0] for tensor in read(replay(2), 16)[0]["inputs"]] == [2, 2]
    assert len(read(replay(5000), 16)) == 32


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (replay(4, id=None), "lacks the inputs id"),
        (replay(4, x=np.full((4, 2), np.nan, np.float32)), "NaN"),
        (replay(4, x=np.zeros((4, 2), np.float16)), "'x' of the replay set is F16"),
        (replay(0), "no rows"),
        (b"\x80\x02pickle, or anything else", "no safetensors file"),
        (
            replay(40, x=np.full((40, 200_000), 0.123456, np.float32)),
            "a request of 32 rows has at least .* bytes; allowed",
        ),
        (replay(40, x=np.full((40, 40_000), -0.123456789, np.float32)), "a request of 32 rows has .* bytes; allowed"),
        (replay(4, x=np.zeros((4, 0), np.float32)), "'x' of the replay set has no values in a row"),
        (empty_input([1, 2**62, 0]), "'x' of the replay set has no values in a row"),
    ],
)
def test_a_set_that_gives_no_requests_is_refused_with_the_reason(content, words):
    with pytest.raises(UnfitReplay, match=words):
        read(content, 32)


def test_bytes_of_all_requests_are_bounded():
    found = read_requests(
        io.BytesIO(wide := replay(320, x=np.ones((320, 5000), np.float32))), len(wide), SIGNATURE, rows=10
    )
    assert sum(map(len, found)) <= 4 << 20
    assert 0 < len(found) < 32


def test_a_snapshot_without_inputs_gives_no_requests():
    with pytest.raises(UnfitReplay, match="no inputs"):
        read_requests(io.BytesIO(replay(4)), len(replay(4)), Signature(inputs=(), outputs=()), rows=1)


@pytest.mark.parametrize("wide", [{"x": 4000}, {"x": 900, "id": 900}])
def test_a_wide_set_is_refused_before_its_rows_are_read(wide):
    stream = CountedReads(
        content := replay(32 * 1024, **{n: np.ones((32 * 1024, w), np.uint8) for n, w in wide.items()})
    )
    with pytest.raises(UnfitReplay, match=r"a request of 1024 rows has at least \d+ bytes; allowed: 4194304"):
        read_requests(stream, len(content), SIGNATURE, rows=1024)
    assert stream.count < 10_000


def test_no_more_rows_are_read_than_may_fit():
    stream = CountedReads(content := replay(32 * 1024, x=np.ones((32 * 1024, 1000), np.uint8)))
    assert len(read_requests(stream, len(content), SIGNATURE, rows=1024)) == 1
    assert stream.count < 2 << 20


class CountedReads(io.BytesIO):
    """Bytes that count how many of them are read."""

    count = 0

    def read(self, size=-1, /):
        found = super().read(size)
        self.count += len(found)
        return found
