"""The transport between router and hosts.

Frames of a JSON header and raw tensors, many calls at once on one connection.

A connection begins as HTTP/1.1 with `Upgrade: ipnext-frames` on the host's port. Then each side sends frames: two
little-endian numbers (bytes of the header, bytes of the body), the header, the body. Tensors begin at multiples of 64
bytes in the body. Bodies are received into memory with the same alignment, so that tensors are used without a copy.

Why not HTTP, zmq or gRPC: docs/decisions/0009, with the measurements.
"""

import asyncio
import struct
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import numpy.typing as npt
import orjson

from ipnext.errors import InvalidInput, IPnextError, TooSlow
from ipnext.model.registry.registry import Datatype
from serving.http.limits import BodyBudget, HttpLimits, RequestPace
from serving.protocol.tensors import DTYPES, Array, Tensor, check_datatype, check_shape, from_binary, to_binary

ALIGNMENT: Final = 64
MAX_HEADER_BYTES: Final = 2**20
MAX_BODY_BYTES: Final = 2**30
_PREFIX: Final = struct.Struct("<IQ")
_SCRATCH_BYTES: Final = 2**16
_PADDING: Final = bytes(ALIGNMENT)

Memory = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True, eq=False)
class Frame:
    """A header and a body. The header's `tensors` describes the body; without it the body is arbitrary bytes."""

    header: Mapping[str, Any]
    body: Memory = field(default_factory=lambda: np.empty(0, np.uint8))

    @property
    def memory(self) -> Memory:
        """The array that owns the memory of the body, which all views and tensors of the body keep in use."""
        base = self.body.base
        return self.body if base is None else base

    def tensors(self) -> dict[str, Tensor]:
        """Return the tensors of the body, in its memory. InvalidInput if header and body do not match."""
        found: dict[str, Tensor] = {}
        position = 0
        try:
            for name, datatype, shape, size, *_ in self.header["tensors"]:  # another build may send more fields
                if position + size > self.body.size or size < 0:
                    msg = f"tensor {name!r}: its {size} bytes reach beyond the frame's {self.body.size}"
                    raise InvalidInput(msg, field=name, value=size)
                found[name] = _tensor(name, datatype, shape, self.body, position, size)
                position += size + -size % ALIGNMENT
        except (KeyError, TypeError, ValueError) as error:
            msg = f"the frame's tensors must be a list of [name, datatype, shape, bytes, ...]: {error!r}"
            raise InvalidInput(msg, field="tensors") from error
        return found


def _tensor(name: str, datatype: str, shape: Sequence[int], body: Memory, start: int, size: int) -> Tensor:
    dtype = DTYPES.get(datatype)
    if dtype is not None and dtype.hasobject is False:
        try:
            array: Array = np.ndarray(shape, dtype, body, start)
        except (TypeError, ValueError) as error:
            msg = f"tensor {name!r}: {datatype} of shape {shape} does not fit its {size} bytes"
            raise InvalidInput(msg, field=name, value=size) from error
        if array.nbytes == size and list(array.shape) == list(shape):
            return Tensor(datatype, array)  # type: ignore[arg-type]  # DTYPES has the members of Datatype as its keys
    chunk = body.data[start : start + size]
    kind: Datatype = check_datatype(name, datatype)
    return from_binary(name, kind, check_shape(name, list(shape)), chunk)


def tensor_frame(header: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> list[bytes | memoryview]:
    """Return the pieces of a frame whose body is these tensors, to be written in order."""
    entries: list[list[Any]] = []
    pieces: list[bytes | memoryview] = []
    size = 0
    for name, tensor in tensors.items():
        raw = _raw(tensor)
        length = len(raw)
        entries.append([name, tensor.datatype, tensor.data.shape, length])
        pieces.append(raw)
        gap = -length % ALIGNMENT
        if gap:
            pieces.append(_PADDING[:gap])
        size += length + gap
    head = orjson.dumps({**header, "tensors": entries})
    return [_PREFIX.pack(len(head), size) + head, *pieces]


def bytes_frame(header: Mapping[str, Any], body: bytes | bytearray | memoryview = b"") -> list[bytes | memoryview]:
    """Return the pieces of a frame whose body is these bytes."""
    head = orjson.dumps(header)
    return [_PREFIX.pack(len(head), len(body)) + head, *([memoryview(body)] if body else [])]


def _raw(tensor: Tensor) -> memoryview | bytes:
    data = tensor.data
    if tensor.datatype == "BYTES" or not data.flags.c_contiguous or not data.size:
        return to_binary(tensor)
    return data.reshape(-1).view(np.uint8).data


class FrameProtocol(asyncio.BufferedProtocol):
    """One connection in frames.

    `on_frame` receives each frame; `on_lost` is called once, when the connection has ended. If there is a `budget`, it
    counts bodies while they arrive; the receiver of a frame gives its bytes back. If there is no room for a body, or it
    is too large, it is read and dropped, and `on_refused` receives the frame's header. A body that `wants` refuses, by
    the frame's header, is read and dropped without a word.
    """

    def __init__(
        self,
        on_frame: Callable[[Frame], None],
        on_lost: Callable[[], None],
        *,
        budget: BodyBudget | None = None,
        on_refused: Callable[[Mapping[str, Any], IPnextError], None] = lambda *_: None,
        wants: Callable[[Mapping[str, Any]], bool] = lambda _: True,
    ) -> None:
        self._on_frame = on_frame
        self._on_lost = on_lost
        self._on_refused = on_refused
        self._wants = wants
        self._budget = budget
        self._left = 0
        """Bytes of a refused body that have not arrived yet."""
        self._size = 0
        """Total bytes of that body."""
        self._frames = 0
        """Frames so far, including refused ones."""
        self._pace: tuple[int, RequestPace] | None = None
        """Number and pace of the frame that was incomplete at the last check."""
        self._choked: tuple[float, int] | None = None
        """Time since which the peer has read nothing, and the bytes that wait for it."""
        self._transport: asyncio.Transport | None = None
        self._scratch = bytearray(_SCRATCH_BYTES)
        self._view = memoryview(self._scratch)
        self._filled = 0
        self._header: Mapping[str, Any] = {}
        self._body: Memory | None = None
        self._body_view = memoryview(b"")
        self._body_filled = 0
        self._broken = False
        """Whether the peer sent something other than frames: its input is ignored from then on."""

    @property
    def open(self) -> bool:
        """Whether frames can be sent."""
        return self._transport is not None

    @property
    def receiving(self) -> bool:
        """Whether a body is incomplete."""
        return self._body is not None or self._left > 0

    @property
    def is_sent(self) -> bool:
        """Whether all written bytes have been sent."""
        return self._transport is None or not self._transport.get_write_buffer_size()

    def check_pace(self, now: float, limits: HttpLimits) -> None:
        """End the connection if the peer is too slow to send a frame, or to read. `now` is of time.monotonic."""
        if self._choked is not None and self._transport is not None:
            since, size = self._choked
            left = self._transport.get_write_buffer_size()
            if limits.takes_too_little(now - since, size - left):
                self.abort()
            elif now - since > limits.write_seconds:
                self._choked = (now, left)
        if self._body is None and not self._filled and not self._left:
            self._pace = None
        elif self._pace is None or self._pace[0] != self._frames:
            self._pace = (self._frames, RequestPace(now))
        else:
            with suppress(TooSlow):
                self._pace[1].check(now, self._come, limits)
                return
            self._break()

    @property
    def _come(self) -> int:
        """Received bytes of the incomplete frame."""
        if self._left:
            return self._size - self._left
        return self._filled if self._body is None else self._body_filled

    def take_over(self, transport: asyncio.Transport, rest: bytes = b"") -> None:
        """Take over a connection from another protocol; `rest` are bytes that it has already read."""
        transport.pause_reading()
        self._transport = transport
        transport.set_protocol(self)
        if rest:
            self._feed(rest)
        if not self._broken:
            transport.resume_reading()

    def send(self, pieces: Sequence[bytes | memoryview]) -> None:
        """Write the pieces of a frame; do nothing if the connection has ended."""
        if self._transport is not None:
            if len(pieces) == 1:
                self._transport.write(pieces[0])
            else:
                self._transport.writelines(pieces)

    def close(self) -> None:
        """Close the connection once the written bytes have been sent."""
        if self._transport is not None:
            self._transport.close()

    def abort(self) -> None:
        """Close the connection now; bytes that are not sent yet are lost."""
        if self._transport is not None:
            self._transport.abort()

    # asyncio calls these

    def connection_lost(self, exc: Exception | None) -> None:  # noqa: ARG002  # asyncio's signature
        """Release the connection: the peer has gone."""
        self._transport = None
        self._drop_body()
        self._on_lost()

    def pause_writing(self) -> None:
        """Record that the peer reads more slowly than this side writes."""
        if self._transport is not None:
            self._choked = (time.monotonic(), self._transport.get_write_buffer_size())

    def resume_writing(self) -> None:
        """Record that the peer has read the buffered bytes."""
        self._choked = None

    def get_buffer(self, sizehint: int) -> memoryview:  # noqa: ARG002  # asyncio's signature
        """Return the memory for the next bytes: that of a body that has begun, else the scratch memory."""
        if self._broken:
            return self._view
        if self._body is not None:
            return self._body_view[self._body_filled :]
        return self._view[self._filled :]

    def buffer_updated(self, nbytes: int) -> None:
        """Process received bytes."""
        if self._broken:
            return
        if self._body is not None:
            self._body_filled += nbytes
            if self._budget is None or self._count(self._budget, nbytes):
                self._finish_body()
            return
        self._filled += nbytes
        self._parse()

    def _feed(self, data: bytes) -> None:
        for piece in _pieces(data, _SCRATCH_BYTES // 2):
            left = memoryview(piece)
            while left and not self._broken:
                target = self.get_buffer(len(left))
                count = min(len(target), len(left))
                if not count:
                    return
                target[:count] = left[:count]
                self.buffer_updated(count)
                left = left[count:]

    def _parse(self) -> None:
        start = self._drop(0) if self._left else 0
        while self._body is None and self._filled - start >= _PREFIX.size:
            head_bytes, body_bytes = _PREFIX.unpack_from(self._scratch, start)
            if head_bytes > MAX_HEADER_BYTES or body_bytes > MAX_BODY_BYTES:
                self._break()
                return
            end = start + _PREFIX.size + head_bytes
            if end > self._filled:
                self._make_room(start, _PREFIX.size + head_bytes)
                return
            header = _parse_header(self._view[start + _PREFIX.size : end])
            if header is None:
                self._break()
                return
            self._header = header
            start = self._begin_body(end, body_bytes)
        self._move(start)

    def _break(self) -> None:
        """Close the connection now, and ignore further input."""
        self._broken = True
        self._drop_body()
        self.abort()

    def _begin_body(self, start: int, size: int) -> int:
        """Copy the received part of a body; return the position of the next frame in the scratch memory."""
        self._frames += 1
        budget = self._budget
        if size and (not self._wants(self._header) or (budget is not None and not self._has_room(budget, size))):
            self._left = self._size = size
            return self._drop(start)
        there = min(self._filled - start, size)
        self._body = aligned_memory(size)
        self._body_view = self._body.data
        self._body_view[:there] = self._view[start : start + there]
        self._body_filled = there
        if budget is None or not there or self._count(budget, there):
            self._finish_body()
        return start + there

    def _finish_body(self) -> None:
        body = self._body
        if body is not None and self._body_filled == body.size:
            self._body, self._body_view = None, memoryview(b"")
            self._on_frame(Frame(self._header, body))

    def _has_room(self, budget: BodyBudget, size: int) -> bool:
        """Refuse a body before it is read if the budget has no room for all of it."""
        if budget.held_bytes + size <= budget.ample_bytes and size <= budget.largest_bytes:
            return True
        try:
            budget.check(budget.held_bytes + size, size)
        except IPnextError as error:
            self._on_refused(self._header, error)
            return False
        return True

    def _count(self, budget: BodyBudget, more: int) -> bool:
        """Count `more` received bytes of the body; refuse the body if the budget has no room for them."""
        if budget.held_bytes + more <= budget.ample_bytes:
            budget.held_bytes += more
            return True
        try:
            budget.take(more, body=self._body_view.nbytes)
        except IPnextError as error:
            left = self._body_view.nbytes - self._body_filled
            self._body_filled -= more
            self._size = self._body_view.nbytes
            self._drop_body()
            self._left = left
            self._on_refused(self._header, error)
            return False
        return True

    def _drop_body(self) -> None:
        """Discard an incomplete body."""
        if self._body is not None and self._budget is not None:
            self._budget.give_back(self._body_filled)
        self._body, self._body_view = None, memoryview(b"")

    def _drop(self, start: int) -> int:
        """Skip received bytes of a refused body; return the position after them in the scratch memory."""
        there = min(self._left, self._filled - start)
        self._left -= there
        return start + there

    def _move(self, start: int) -> None:
        left = self._filled - start
        if start and left:
            self._view[:left] = bytes(self._view[start : self._filled])
        self._filled = left

    def _make_room(self, start: int, needed: int) -> None:
        """Grow the scratch memory for a header that is larger."""
        self._move(start)
        if needed > len(self._scratch):
            grown = bytearray(needed + _SCRATCH_BYTES)
            grown[: self._filled] = self._view[: self._filled]
            self._scratch, self._view = grown, memoryview(grown)


def _parse_header(text: memoryview) -> Mapping[str, Any] | None:
    """Return the header; None if the peer does not send frames, so that the rest is meaningless."""
    try:
        header = orjson.loads(text)
    except ValueError:
        return None
    return header if isinstance(header, dict) else None


def aligned_memory(size: int) -> Memory:
    """Return writable memory that begins at a multiple of 64 bytes."""
    if not size:
        return np.empty(0, np.uint8)
    whole = np.empty(size + ALIGNMENT, np.uint8)
    start = -whole.__array_interface__["data"][0] % ALIGNMENT
    return whole[start : start + size]


def _pieces(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]
