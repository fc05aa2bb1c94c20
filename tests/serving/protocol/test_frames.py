"""Frames between router and host: what is sent arrives, in whatever pieces, and each tensor lies aligned."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ipnext.errors import InvalidInput
from serving.http.limits import HttpLimits
from serving.protocol.frames import ALIGNMENT, MAX_HEADER_BYTES, Frame, FrameProtocol, bytes_frame, tensor_frame
from serving.protocol.tensors import DTYPES, Tensor


class Wire:
    """A transport that keeps what is written."""

    def __init__(self):
        self.written = bytearray()
        self.closed = False
        self.unsent = 0

    def get_write_buffer_size(self):
        return self.unsent

    def write(self, data):
        self.written += data

    def writelines(self, pieces):
        for piece in pieces:
            self.written += piece

    def close(self):
        self.closed = True

    abort = close

    def pause_reading(self):
        pass

    def resume_reading(self):
        pass

    def set_protocol(self, protocol):
        pass


def receive(data, sizes=(65_536,)):
    """The frames that come of bytes that arrive in pieces of these sizes, over and over."""
    frames, wire = [], Wire()
    protocol = FrameProtocol(frames.append, lambda: None)
    protocol.take_over(wire)
    position = turn = 0
    while position < len(data) and not wire.closed:
        target = protocol.get_buffer(-1)
        count = min(len(target), sizes[turn % len(sizes)], len(data) - position)
        target[:count] = data[position : position + count]
        protocol.buffer_updated(count)
        position += count
        turn += 1
    return frames, wire


def joined(*frames):
    return b"".join(bytes(piece) for frame in frames for piece in frame)


def sample():
    random = np.random.default_rng(0)
    tensors = {
        datatype: Tensor(datatype, random.integers(0, 2, (3, 5)).astype(dtype))
        for datatype, dtype in DTYPES.items()
        if datatype != "BYTES"
    }
    words = np.array([b"", b"a", b"longer"], object)
    return tensors | {"BYTES": Tensor("BYTES", words), "none": Tensor("FP32", np.zeros((0, 4), np.float32))}


def test_tensors_of_all_datatypes_arrive_as_they_were():
    tensors = sample()
    [frame], _ = receive(joined(tensor_frame({"id": 7}, tensors)))
    assert frame.header["id"] == 7
    got = frame.tensors()
    assert list(got) == list(tensors)
    for name, tensor in tensors.items():
        assert got[name].datatype == tensor.datatype
        assert got[name].data.dtype == tensor.data.dtype
        assert np.array_equal(got[name].data, tensor.data), name
        if name != "BYTES":
            assert got[name].data.ctypes.data % ALIGNMENT == 0, name
            assert got[name].data.flags.writeable


def test_what_another_build_says_of_a_tensor_beyond_its_four_figures_is_ignored():
    body = np.array([1.0, 2.0], np.float32)
    found = Frame({"tensors": [["x", "FP32", [2], 8, "more", 1]]}, body.view(np.uint8)).tensors()
    assert np.array_equal(found["x"].data, body)


def test_a_tensor_that_is_not_contiguous_is_sent_by_its_elements():
    data = np.arange(12, dtype=np.int32).reshape(3, 4)[:, ::2]
    [frame], _ = receive(joined(tensor_frame({}, {"x": Tensor("INT32", data)})))
    assert np.array_equal(frame.tensors()["x"].data, data)


@settings(max_examples=50, deadline=None)
@given(
    st.lists(st.integers(0, 200_000), min_size=1, max_size=5),
    st.lists(st.integers(1, 100_000), min_size=1, max_size=4),
)
def test_frames_come_through_in_pieces_of_any_size(bodies, sizes):
    frames = [bytes_frame({"n": n, "pad": "x" * (n % 91)}, bytes([n % 251]) * size) for n, size in enumerate(bodies)]
    got, _ = receive(joined(*frames), sizes)
    assert [(frame.header["n"], bytes(frame.body)) for frame in got] == [
        (n, bytes([n % 251]) * size) for n, size in enumerate(bodies)
    ]


def test_a_header_larger_than_the_first_buffer_is_read_and_one_beyond_the_limit_ends_the_connection():
    [frame], _ = receive(joined(bytes_frame({"x": "y" * 300_000}, b"body")))
    assert (len(frame.header["x"]), bytes(frame.body)) == (300_000, b"body")
    got, wire = receive(joined(bytes_frame({"x": "y" * MAX_HEADER_BYTES})))
    assert not got
    assert wire.closed


def test_a_header_that_is_no_json_ends_the_connection():
    for head in (b"{nonsense", b"[1, 2]", b"\xff\xfe"):
        got, wire = receive(len(head).to_bytes(4, "little") + bytes(8) + head)
        assert not got
        assert wire.closed


@pytest.mark.parametrize(
    "entries",
    [
        [["x", "FP32", [4], 16]],
        [["x", "FP32", [2], 4]],
        [["x", "FP32", [-1], 8]],
        [["x", "FP99", [2], 8]],
        [["x", "BYTES", [2], 8]],
        [["x", "FP32", [2], -8]],
        [["x", "FP32", "shape", 8]],
        [["x", "FP32", [2]]],
        "nothing",
        None,
    ],
)
def test_a_header_that_does_not_fit_its_body_is_refused(entries):
    with pytest.raises(InvalidInput):
        Frame({"tensors": entries}, np.full(8, 255, np.uint8)).tensors()


@given(
    whole=st.integers(0, 3),
    junk=st.one_of(st.just(bytes(64)), st.binary(min_size=16, max_size=200)),
    size=st.integers(2**16, 2**18),
)
@settings(deadline=None)
def test_junk_behind_the_upgrade_ends_the_connection_however_much_it_is(whole, junk, size):
    """Nothing of it is read on, in one read with the upgrade or after it."""
    good = joined(*(bytes_frame({"n": number}, b"x" * 10) for number in range(whole)))
    refused = (MAX_HEADER_BYTES + 1).to_bytes(4, "little") * 2
    frames, lost = [], []
    wire, protocol = Wire(), FrameProtocol(frames.append, lambda: lost.append(1))
    protocol.take_over(wire, good + refused + (junk * (size // len(junk) + 1))[:size])
    assert [frame.header for frame in frames] == [{"n": number} for number in range(whole)]
    assert wire.closed
    for _ in range(3):
        target = protocol.get_buffer(-1)
        assert len(target)
        target[:] = bytes(len(target))
        protocol.buffer_updated(len(target))
    assert len(frames) == whole


@given(junk=st.binary(min_size=16, max_size=500).map(lambda start: start * (2**18 // len(start))))
@settings(deadline=None)
def test_any_bytes_behind_the_upgrade_are_taken_or_end_the_connection(junk):
    wire, protocol = Wire(), FrameProtocol(lambda _: None, lambda: None)
    protocol.take_over(wire, junk)


def test_zeros_behind_the_upgrade_end_the_connection():
    wire, protocol = Wire(), FrameProtocol(lambda _: None, lambda: None)
    protocol.take_over(wire, bytes(250_000))
    assert wire.closed


def test_the_end_of_a_connection_is_told_once_and_nothing_is_sent_after_it():
    lost, wire = [], Wire()
    protocol = FrameProtocol(lambda _: None, lambda: lost.append(1))
    protocol.take_over(wire)
    protocol.connection_lost(None)
    protocol.send(bytes_frame({}))
    protocol.close()
    assert (lost, bytes(wire.written), protocol.open) == ([1], b"", False)


# one connection


def connected(rest=b"", **more):
    frames, wire = [], Wire()
    protocol = FrameProtocol(frames.append, lambda: None, **more)
    protocol.take_over(wire, rest)
    return protocol, wire, frames


def arrive(protocol, data):
    target = protocol.get_buffer(-1)
    target[: len(data)] = data
    protocol.buffer_updated(len(data))


def test_a_frame_has_no_body_unless_it_is_given_one():
    assert Frame({}).body.size == 0


def test_frames_that_came_with_the_upgrade_are_read_however_many_they_are():
    _, wire, frames = connected(joined(*(bytes_frame({"n": number}, b"x" * 100) for number in range(1000))))
    assert [frame.header["n"] for frame in frames] == list(range(1000))
    assert not wire.closed


def test_pieces_are_sent_in_their_order():
    protocol, wire, _ = connected()
    protocol.send([b"a", b"b", b"c"])
    protocol.send([b"d"])
    assert wire.written == b"abcd"


def test_all_is_sent_once_nothing_waits_for_the_peer():
    protocol = FrameProtocol(lambda _: None, lambda: None)
    assert protocol.is_sent
    protocol.take_over(wire := Wire())
    for waiting in (3, 0):
        wire.unsent = waiting
        assert protocol.is_sent is (waiting == 0)


@pytest.mark.parametrize("wanted", [True, False])
def test_a_body_is_received_from_its_first_byte_to_its_last(wanted):
    protocol, _, frames = connected(wants=lambda _: wanted)
    data = joined(bytes_frame({}, b"x" * 10))
    assert not protocol.receiving
    arrive(protocol, data[:-4])
    assert protocol.receiving
    arrive(protocol, data[-4:])
    assert not protocol.receiving
    assert len(frames) == wanted


def test_a_buffer_full_of_junk_leaves_room_for_what_comes_before_the_connection_ends():
    protocol, wire, _ = connected()
    arrive(protocol, bytes(len(protocol.get_buffer(-1))))
    assert wire.closed
    assert len(protocol.get_buffer(-1)) > 0


LIMITS = HttpLimits(
    read_seconds=20.0, window_seconds=10.0, read_bytes_per_second=1000, write_seconds=20.0, write_bytes_per_second=10
)


@pytest.mark.parametrize("wanted", [True, False])
@pytest.mark.parametrize(("size", "ends"), [(0, True), (9_000, True), (11_000, False)])
def test_a_frame_whose_rest_comes_too_slowly_ends_the_connection(wanted, size, ends):
    protocol, wire, _ = connected(wants=lambda _: wanted)
    data = joined(bytes_frame({}, bytes(100_000)))
    arrive(protocol, data[:30_000])
    protocol.check_pace(100.0, LIMITS)
    for turn, now in enumerate((110.5, 121.0)):
        assert not wire.closed
        arrive(protocol, data[30_000 + turn * size :][:size])
        protocol.check_pace(now, LIMITS)
    assert wire.closed is ends


def test_each_frame_has_its_own_time():
    protocol, wire, frames = connected()
    data = joined(bytes_frame({}, b"x" * 100))
    for number in range(5):
        arrive(protocol, data[:50])
        protocol.check_pace(100.0 + 15 * number, LIMITS)
        arrive(protocol, data[50:])
    assert not wire.closed
    assert len(frames) == 5


@pytest.mark.parametrize(("read", "ends"), [(150, True), (250, False)])
def test_a_peer_that_reads_next_to_nothing_ends_the_connection(monkeypatch, read, ends):
    protocol, wire, _ = connected()
    monkeypatch.setattr("time.monotonic", lambda: 100.0)
    wire.unsent = 1000
    protocol.pause_writing()
    protocol.check_pace(119.0, LIMITS)
    wire.unsent -= read
    protocol.check_pace(121.0, LIMITS)
    assert wire.closed is ends


def test_a_peer_that_has_read_all_may_be_silent():
    protocol, wire, _ = connected()
    protocol.pause_writing()
    protocol.resume_writing()
    protocol.check_pace(1e9, LIMITS)
    assert not wire.closed
