"""Requests that look alike: what the JSON header of a V2 request says is read once, not once a request.

A client that asks again with as many rows sends the same header again, byte for byte; only the binary data behind it is
new. So what a header was found to say is kept for the next request that begins with the same bytes and is as long.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ipnext.model.registry import Datatype, Signature
from serving.protocol.tensors import DTYPES, Array, Tensor
from serving.protocol.v2 import Body, InferRequest, Room, decode_request, no_limit

FORMS_KEPT: Final = 256
_HEADER_BYTES: Final = 2**14
"""Of a longer header nothing is kept: it holds data, or names hundreds of tensors."""
_CHECKED_BY_VALUE: Final = frozenset({"BYTES", "BOOL"})


@dataclass(frozen=True, slots=True)
class _Place:
    """An input, and where in the body it begins."""

    name: str
    datatype: Datatype
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int

    def read(self, body: Body) -> Tensor:
        """The input of another body of this form, in its memory."""
        data: Array = np.ndarray(self.shape, self.dtype, body, self.start)
        return Tensor(self.datatype, data)


class FormsSeen:
    """Forms that were found to be right, so that what depends on the form alone is checked once."""

    def __init__(self) -> None:
        self._seen: set[object] = set()

    def check(self, request: InferRequest, check: Callable[[], None]) -> None:
        """Call `check` unless it has let a request of this form pass before. Raises what it raises."""
        if request.form is None:
            check()
        elif request.form not in self._seen:
            check()
            if len(self._seen) >= FORMS_KEPT:
                self._seen.clear()
            self._seen.add(request.form)


class RequestForms:
    """Reads V2 requests. Used from one event loop."""

    def __init__(self) -> None:
        self._known: dict[tuple[bytes, int], tuple[InferRequest, tuple[_Place, ...]]] = {}

    def read(
        self, body: Body, header_length: int | None, signature: Signature | None = None, *, room: Room = no_limit
    ) -> InferRequest:
        """As `decode_request`. Requests of one form have the same `form`; None where nothing is kept of this one."""
        if header_length is None or not 0 < header_length <= _HEADER_BYTES:
            return decode_request(body, header_length, signature, room=room)
        key = (bytes(memoryview(body)[:header_length]), len(body))
        known = self._known.get(key)
        if known is None:
            return self._first(key, decode_request(body, header_length, signature))
        like, places = known
        inputs = {place.name: place.read(body) for place in places}
        return InferRequest(inputs, like.outputs, None, like.parameters, like.binary_output, like.form)

    def _first(self, key: tuple[bytes, int], request: InferRequest) -> InferRequest:
        header, size = key
        places = _places(request, len(header))
        if request.id is not None or places is None or _end(places) != size:
            return request
        if len(self._known) >= FORMS_KEPT:
            del self._known[next(iter(self._known))]
        like = InferRequest({}, request.outputs, None, request.parameters, request.binary_output, form=object())
        self._known[key] = like, places
        return InferRequest(request.inputs, like.outputs, None, like.parameters, like.binary_output, like.form)


def _places(request: InferRequest, start: int) -> tuple[_Place, ...] | None:
    """Where the inputs lie if all of them came as binary data; None where one's values are to be checked each time."""
    places: list[_Place] = []
    for name, tensor in request.inputs.items():
        if tensor.datatype in _CHECKED_BY_VALUE or not tensor.data.size:
            return None
        places.append(_Place(name, tensor.datatype, DTYPES[tensor.datatype], tensor.shape, start))
        start += tensor.data.nbytes
    return tuple(places)


def _end(places: tuple[_Place, ...]) -> int:
    """Bytes of a body that ends with its last input. One with an input inside its header is shorter."""
    last = places[-1]
    return last.start + int(np.prod(last.shape, dtype=np.int64)) * last.dtype.itemsize
