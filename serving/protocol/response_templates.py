"""Templates of V2 answers: all of an answer but its numbers is encoded once per form of its outputs."""

from collections.abc import Callable, Collection, Hashable, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

import orjson

from ipnext.errors import InvalidInput, IPnextError
from serving.protocol.tensors import Tensor, all_finite, to_binary, to_json
from serving.protocol.v2 import EncodedBody, InferRequest, InferResponse, answer_head, encode_response

_FORMS_KEPT: Final = 256
_SHAPES_KEPT: Final = 64


class NotFinite(IPnextError):
    """The answer has NaN or infinity, but the request wants JSON, which cannot represent them."""


def not_finite_inputs() -> InvalidInput:
    """Return the error of a request with NaN or infinity whose answer is in JSON, which cannot represent them."""
    msg = (
        "inputs: hold NaN or infinity, so the answer does too, which JSON cannot carry; send finite numbers, "
        "or ask for binary data"
    )
    return InvalidInput(msg, field="inputs")


Shapes = tuple[tuple[int, ...], ...]


@dataclass(frozen=True, slots=True)
class _InJson:
    """An answer in JSON: the text before the numbers of each output."""

    before: tuple[bytes, ...]

    def fill(self, tensors: Mapping[str, Tensor]) -> EncodedBody:
        pieces: list[bytes] = []
        for before, (name, tensor) in zip(self.before, tensors.items(), strict=True):
            pieces += (before, orjson.dumps(to_json(name, tensor)))
        return EncodedBody(b"".join((*pieces, b"}]}")), None)


@dataclass(frozen=True, slots=True)
class _InBinary:
    """An answer whose outputs are all binary data after its header."""

    header: bytes

    def fill(self, tensors: Mapping[str, Tensor]) -> EncodedBody:
        return EncodedBody(b"".join((self.header, *map(to_binary, tensors.values()))), len(self.header))


class AnswerForm:
    """An answer without its numbers: `head` with the `chosen` outputs, those named in `binary` as binary data."""

    def __init__(self, head: InferResponse, chosen: Sequence[str], binary: Collection[str]) -> None:
        self._head = head
        self._chosen = tuple(chosen)
        self._binary = frozenset(binary)
        self._known: dict[Shapes, _InJson | _InBinary] = {}

    def select_outputs(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the outputs that the answer contains."""
        return {name: outputs[name] for name in self._chosen}

    def encode(self, outputs: Mapping[str, Tensor]) -> tuple[EncodedBody, bool]:
        """Encode the body of the answer, and return whether all its numbers are finite. Errors as `encode_response`."""
        tensors = self.select_outputs(outputs)
        finite = all(all_finite(tensor) for tensor in tensors.values())
        shapes = tuple(tensor.data.shape for tensor in tensors.values())
        known = self._known.get(shapes)
        if known is not None and finite:
            return known.fill(tensors), finite
        head = self._head
        answer = InferResponse(head.model_name, tensors, head.model_version, head.id, head.parameters)
        try:
            encoded = encode_response(answer, binary=self._binary)
        except InvalidInput:
            raise
        except IPnextError as error:
            raise error if finite else NotFinite(error.message) from error
        if finite and len(self._known) < _SHAPES_KEPT:
            self._keep(shapes, tensors, encoded)
        return encoded, finite

    def encode_for(self, inputs: Mapping[str, Tensor], outputs: Mapping[str, Tensor]) -> tuple[EncodedBody, bool]:
        """Encode the body; otherwise as `encode`.

        If the inputs were not finite, the answer counts as finite: the client is the cause.

        Raises:
            InvalidInput: the inputs were not finite and the answer is in JSON; and as `encode_response`.
            NotFinite: the inputs were finite, the outputs are not, and the answer is in JSON.
        """
        try:
            encoded, finite = self.encode(outputs)
        except NotFinite:
            if _all_finite(inputs):
                raise
            raise not_finite_inputs() from None
        return encoded, finite or not _all_finite(inputs)

    def _keep(self, shapes: Shapes, tensors: Mapping[str, Tensor], encoded: EncodedBody) -> None:
        """Keep a template. BYTES are excluded: in binary their sizes are in the header, in JSON they may have none."""
        if any(tensor.datatype == "BYTES" for tensor in tensors.values()):
            return
        if encoded.header_length is not None and self._binary.issuperset(tensors):
            self._known[shapes] = _InBinary(encoded.body[: encoded.header_length])
        elif encoded.header_length is None:
            self._known[shapes] = _in_json(answer_head(self._head), tensors)


def _all_finite(tensors: Mapping[str, Tensor]) -> bool:
    return all(all_finite(tensor) for tensor in tensors.values())


def _in_json(head: Mapping[str, object], tensors: Mapping[str, Tensor]) -> _InJson:
    between = orjson.dumps(head)[:-1] + b',"outputs":['
    before: list[bytes] = []
    for name, tensor in tensors.items():
        entry = orjson.dumps({"name": name, "datatype": tensor.datatype, "shape": tensor.data.shape})
        before.append(between + entry[:-1] + b',"data":')
        between = b"},"
    return _InJson(tuple(before))


class AnswerForms:
    """The answer forms of one part or graph."""

    def __init__(self) -> None:
        self._known: dict[Hashable, AnswerForm] = {}

    def of(self, wanted: InferRequest, about: Hashable, make: Callable[[], AnswerForm]) -> AnswerForm:
        """Return the form for a request for the same outputs.

        If the request has an id, which its answer repeats, make a new one.
        """
        if wanted.id is not None:
            return make()
        key = (about, wanted.outputs, wanted.binary_output)
        known = self._known.get(key)
        if known is None:
            known = make()
            if len(self._known) >= _FORMS_KEPT:
                del self._known[next(iter(self._known))]
            self._known[key] = known
        return known
