"""Answers that look alike: the JSON header of a V2 answer in binary is written once for each form of its outputs."""

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from typing import Final

from serving.protocol import Encoded, InferResponse, encode_response
from serving.tensors import Tensor, all_finite, to_binary

_FORMS_KEPT: Final = 256
_HEADERS_KEPT: Final = 64


class AnswerForm:
    """All of an answer but its numbers: `head` with the `chosen` outputs, those named in `binary` as binary data."""

    def __init__(self, head: InferResponse, chosen: Sequence[str], binary: Collection[str]) -> None:
        self._head = head
        self._chosen = tuple(chosen)
        self._binary = frozenset(binary)
        self._headers: dict[tuple[tuple[int, ...], ...], bytes] = {}

    def encode(self, outputs: Mapping[str, Tensor]) -> tuple[Encoded, bool]:
        """The body of the answer, and whether all its numbers are finite. Errors as `encode_response`."""
        tensors = {name: outputs[name] for name in self._chosen}
        finite = all(all_finite(tensor) for tensor in tensors.values())
        shapes = tuple(tensor.data.shape for tensor in tensors.values())
        header = self._headers.get(shapes)
        if header is not None:
            return Encoded(b"".join((header, *map(to_binary, tensors.values()))), len(header)), finite
        head = self._head
        answer = InferResponse(head.model_name, tensors, head.model_version, head.id, head.parameters)
        encoded = encode_response(answer, binary=self._binary)
        self._keep(shapes, tensors, encoded)
        return encoded, finite

    def _keep(self, shapes: tuple[tuple[int, ...], ...], tensors: Mapping[str, Tensor], encoded: Encoded) -> None:
        sizes_follow = all(name in self._binary and t.datatype != "BYTES" for name, t in tensors.items())
        if encoded.header_length is not None and sizes_follow and len(self._headers) < _HEADERS_KEPT:
            self._headers[shapes] = encoded.body[: encoded.header_length]


class AnswerForms:
    """The forms of the answers to requests whose own form is known."""

    def __init__(self) -> None:
        self._known: dict[Hashable, AnswerForm] = {}

    def of(self, form: object | None, about: Hashable, make: Callable[[], AnswerForm]) -> AnswerForm:
        """What `make` gave for a request of this form about the same thing; made anew where the form is None."""
        if form is None:
            return make()
        key = (form, about)
        known = self._known.get(key)
        if known is None:
            known = make()
            if len(self._known) >= _FORMS_KEPT:
                del self._known[next(iter(self._known))]
            self._known[key] = known
        return known
