"""Templates of V2 requests: the JSON header of requests with the same form is parsed once, not per request.

If a client sends as many rows again, it sends the same header, byte for byte; only the binary data after it is new. So
the parsed header is kept for later requests that begin with the same bytes and have the same length.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from ipnext.model.registry.registry import Datatype, Signature
from serving.protocol.tensors import DTYPES, Array, Tensor
from serving.protocol.v2 import Body, InferRequest, Room, decode_request, no_limit

FORMS_KEPT: Final = 256
_HEADER_BYTES: Final = 2**14
"""Longer headers are not kept: they contain data, or name hundreds of tensors."""
_CHECKED_BY_VALUE: Final = frozenset({"BYTES", "BOOL"})


@dataclass(frozen=True, slots=True)
class _Place:
    """An input and its offset in the body."""

    name: str
    datatype: Datatype
    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    start: int

    def read(self, body: Body) -> Tensor:
        """Return the input from another body of this form, in its memory."""
        data: Array = np.ndarray(self.shape, self.dtype, body, self.start)
        return Tensor(self.datatype, data)


class FormsSeen:
    """Forms that passed a check, so that a check that depends on the form alone runs once."""

    def __init__(self) -> None:
        self._seen: set[object] = set()

    def check(self, request: InferRequest, check: Callable[[], None]) -> None:
        """Call `check` unless it has already passed for a request of this form. Raises the errors of `check`."""
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
        """Read a request; as `decode_request`.

        Requests of one form share the same `form` object; None if the form is not kept.
        """
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
    """Return the offsets of the inputs if all are binary data; None if the values of one must be checked each time."""
    places: list[_Place] = []
    for name, tensor in request.inputs.items():
        if tensor.datatype in _CHECKED_BY_VALUE or not tensor.data.size:
            return None
        places.append(_Place(name, tensor.datatype, DTYPES[tensor.datatype], tensor.shape, start))
        start += tensor.data.nbytes
    return tuple(places)


def _end(places: tuple[_Place, ...]) -> int:
    """Return the size of a body that ends with its last input. If an input is in the header, the body is shorter."""
    last = places[-1]
    return last.start + int(np.prod(last.shape, dtype=np.int64)) * last.dtype.itemsize
