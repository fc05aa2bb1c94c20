"""What atheris runs: bytes into a codec, which may refuse them and do nothing else. Each target has its seeds."""

import asyncio
import struct

import numpy as np

from ipnext.errors import InvalidInput
from serving.http.connection import http_factory
from serving.http.messages import Response
from serving.protocol.frames import FrameProtocol, bytes_frame, tensor_frame
from serving.protocol.tensors import DTYPES, Tensor, check_shape, from_binary, to_binary, to_json
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


def codec(data):
    """A V2 body behind two bytes that say how much of it is the JSON header; what is read can be written again."""
    length = int.from_bytes(data[:2], "little") or None
    try:
        wanted = decode_request(bytearray(data[2:]), length)
        outputs = wanted.select(wanted.inputs)
        encoded = encode_response(InferResponse("m", outputs, "1", wanted.id), binary=frozenset(outputs))
    except InvalidInput:
        return
    again = decode_response(encoded.body, encoded.header_length).outputs
    assert [*again] == [*outputs]
    assert all(to_binary(again[name]) == to_binary(outputs[name]) for name in outputs)


def tensors(data):
    """One tensor of binary data: a byte for the datatype, one for the rank, four for each size, the rest its bytes."""
    rank = data[1] % 5 if len(data) > 1 else 0
    if len(data) < 2 + 4 * rank:
        return
    datatype = sorted(DTYPES)[data[0] % len(DTYPES)]
    try:
        shape = check_shape("x", list(struct.unpack_from(f"<{rank}I", data, 2)))
        chunk = memoryview(bytearray(data[2 + 4 * rank :]))
        tensor = from_binary("x", datatype, shape, chunk)
        assert to_binary(tensor) == bytes(chunk)
        to_json("x", tensor)
    except InvalidInput:
        return


class Wire(asyncio.Transport):
    """Takes what is written."""

    def __init__(self):
        super().__init__()
        self.ended = False

    def write(self, data):  # noqa: ARG002  # asyncio's signature
        assert not self.ended

    def writelines(self, pieces):  # noqa: ARG002  # asyncio's signature
        assert not self.ended

    def write_eof(self):
        self.ended = True

    def close(self):
        self.ended = True

    abort = close

    def set_protocol(self, protocol):
        """It is fed by hand."""

    def pause_reading(self):
        """It is fed by hand."""

    def resume_reading(self):
        """It is fed by hand."""


def frames(data):
    """A byte for the size of the pieces, then what a connection brings; the tensors of each frame are read."""
    if not data:
        return
    found = []
    wire = Wire()
    protocol = FrameProtocol(found.append, lambda: None)
    protocol.take_over(wire)
    size = data[0] + 1
    for start in range(1, len(data), size):
        if wire.ended:
            break
        protocol._feed(data[start : start + size])
    for frame in found:
        try:
            for tensor in frame.tensors().values():
                to_binary(tensor)
        except InvalidInput:
            continue


_LOOP = asyncio.new_event_loop()


def http(data):
    """A byte for the size of the pieces, then what a client sends to an HTTP server that decodes V2."""
    if data:
        _LOOP.run_until_complete(_http(data))


async def _http(data):
    factory, _ = http_factory(_answer)
    connection, wire = factory(), Wire()
    connection.connection_made(wire)
    size = data[0] + 1
    for start in range(1, len(data), size):
        if wire.ended:
            break
        connection.data_received(data[start : start + size])
    connection.connection_lost(None)


def _answer(request):
    wanted = decode_request(request.content, parse_header_length(request.header("inference-header-content-length")))
    return Response(200, encode_response(InferResponse("m", wanted.inputs, "1", wanted.id)).body)


_X = Tensor("FP32", np.ones((1, 2), np.float32))
_WORDS = np.empty(2, np.object_)
_WORDS[:] = [b"a", b"bc"]
_BOTH = {"x": _X, "w": Tensor("BYTES", _WORDS)}
_BINARY = encode_request(InferRequest(_BOTH, (RequestedOutput("x", binary=True),), "id"))
_JSON = encode_request(InferRequest(_BOTH), binary=False).body
_FRAME = b"".join(bytes(piece) for piece in tensor_frame({"id": 1, "op": "infer"}, _BOTH))
_POST = b"POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: %d\r\n%s\r\n%s"

SEEDS = {
    codec: [(_BINARY.header_length or 0).to_bytes(2, "little") + _BINARY.body, b"\0\0" + _JSON],
    tensors: [
        b"\x00\x01" + struct.pack("<I", 2) + to_binary(_BOTH["w"]),
        b"\x06\x02" + struct.pack("<II", 1, 2) + bytes(8),
    ],
    frames: [b"\xff" + _FRAME * 2, b"\x05" + b"".join(bytes(piece) for piece in bytes_frame({"id": 2}, b"abc"))],
    http: [
        b"\xff" + _POST % (len(_JSON), b"", _JSON),
        b"\x07"
        + _POST
        % (len(_BINARY.body), b"inference-header-content-length: %d\r\n" % (_BINARY.header_length or 0), _BINARY.body),
        b"\x30POST / HTTP/1.1\r\nhost: localhost\r\ntransfer-encoding: chunked\r\n\r\n2\r\n{}\r\n0\r\n\r\n",
    ],
}
