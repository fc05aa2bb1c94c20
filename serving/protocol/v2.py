"""Codec of the Open Inference Protocol V2: JSON, and JSON followed by binary tensors.

Pure functions on bytes. A body is a JSON header of `header_length` bytes (the `Inference-Header-Content-Length` header;
None: all of it), then the raw data of each tensor with a `binary_data_size`, in the header's order. For any bytes,
decoding raises the documented errors or none.
"""

import gc
import json
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, Final

import orjson

from ipnext.errors import InvalidInput, IPnextError, TooLarge
from ipnext.model.echoes import show_value
from ipnext.model.registry.registry import Signature
from serving.protocol.json_size import parsed_bytes
from serving.protocol.signature import check_takes_bytes
from serving.protocol.tensors import Tensor, check_datatype, check_shape, from_binary, from_json, to_binary, to_json

HEADER_LENGTH: Final = "inference-header-content-length"
_ALIGNMENT: Final = 8
MAX_JSON_BYTES: Final = 8 * 2**20
"""Most JSON in one request: parsing it blocks all other requests of the process, here for some 150 ms."""
MAX_JSON_ELEMENTS: Final = 2**20
"""Most elements of an answer in JSON; larger answers must be binary data. Encoding this many as JSON takes as long."""
_UNCOLLECTED_BYTES: Final = 2**16
_BINARY_SIZE: Final = "binary_data_size"
_UNSUPPORTED: Final = {
    "shared_memory_region": "shared memory: send the tensor as binary data",
    "classification": "classification: ask for the output and rank it",
    "sequence_id": "sequences: every request stands alone",
}
"""Parameters of V2 extensions that change the meaning of a request and are not supported."""

Body = bytes | bytearray | memoryview


@dataclass(frozen=True, slots=True)
class RequestedOutput:
    """An output that the request names, and whether it is returned as binary data."""

    name: str
    binary: bool


@dataclass(frozen=True, slots=True, eq=False)
class InferRequest:
    """A decoded request. If `outputs` is empty, all outputs are wanted, as binary data if `binary_output`.

    `form` is the same object for requests that differ only in their numbers; None if that is not known.
    """

    inputs: Mapping[str, Tensor]
    outputs: tuple[RequestedOutput, ...] = ()
    id: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)
    binary_output: bool = False
    form: object | None = None

    def seconds(self, allowed: float) -> float:
        """Return `allowed`, or less if the request's parameter `timeout` (microseconds, above 0) is shorter."""
        timeout = self.parameters.get("timeout", 0)
        if type(timeout) is not int or timeout < 0:
            msg = f"parameters.timeout: must be whole microseconds, got {show_value(timeout)}"
            raise InvalidInput(msg, field="parameters.timeout", value=timeout)
        return min(allowed, timeout / 1e6) if timeout else allowed

    def check_outputs(self, known: Sequence[str]) -> None:
        """Check the requested outputs; InvalidInput names one that does not exist."""
        for output in self.outputs:
            if output.name not in known:
                msg = f"output {output.name!r} does not exist; the outputs are {', '.join(known)}"
                raise InvalidInput(msg, field="outputs", value=output.name, allowed=known)

    def select(self, outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the outputs that the request wants, in its order. InvalidInput as check_outputs."""
        self.check_outputs(tuple(outputs))
        return {name: outputs[name] for name in ([output.name for output in self.outputs] or outputs)}

    def binary_names(self, outputs: Collection[str]) -> frozenset[str]:
        """Return the names of the outputs to be returned as binary data."""
        if not self.outputs:
            return frozenset(outputs if self.binary_output else ())
        return frozenset(output.name for output in self.outputs if output.binary)


@dataclass(frozen=True, slots=True, eq=False)
class InferResponse:
    """An answer before encoding, or after decoding."""

    model_name: str
    outputs: Mapping[str, Tensor]
    model_version: str | None = None
    id: str | None = None
    parameters: Mapping[str, Any] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class EncodedBody:
    """A body, and the length of its JSON header if binary data follows it (else None)."""

    body: bytes
    header_length: int | None

    @property
    def headers(self) -> dict[str, str]:
        """The HTTP headers that describe the body."""
        if self.header_length is None:
            return {"content-type": "application/json"}
        return {"content-type": "application/octet-stream", HEADER_LENGTH: str(self.header_length)}


def snapshots_text(snapshots: Mapping[str, int]) -> str:
    """Return the snapshot of each part in the form of headers and parameters: `dense=4,sparse=4`."""
    return ",".join(f"{part}={number}" for part, number in sorted(snapshots.items()))


def proof_parameters(generation: int, snapshots: Mapping[str, int], region: str) -> dict[str, str | int]:
    """Return the versions that answered, as `parameters` of an answer: strings, numbers or booleans, as V2 demands."""
    return {"generation": generation, "snapshots": snapshots_text(snapshots), "region": region}


def parse_header_length(text: str | None) -> int | None:
    """Return the number in an `Inference-Header-Content-Length` header; None if there is no such header."""
    if text is None:
        return None
    if not (text.isascii() and text.isdigit() and len(text) <= 18):
        msg = f"{HEADER_LENGTH}: {text[:40]!r} must be a whole number of bytes"
        raise InvalidInput(msg, field=HEADER_LENGTH, value=text)
    return int(text)


def check_json_size(body: Body, header_length: int | None, limit: int) -> None:
    """Raise TooLarge if more than `limit` bytes of the body are JSON."""
    size = len(body) if header_length is None else header_length
    if size > limit:
        msg = (
            f"the request has {size} bytes of JSON, the limit is {limit} (--max-json-bytes); "
            "send tensors as binary data"
        )
        raise TooLarge(msg, field="body", value=size)


Room = Callable[[int], None]
"""Raises Unavailable if there is no room for this many bytes."""


def no_limit(_size: int) -> None:
    """Accept any size."""


def decode_request(
    body: Body, header_length: int | None = None, signature: Signature | None = None, *, room: Room = no_limit
) -> InferRequest:
    """Read a request. Tensors given as binary data share memory with `body`.

    If a `signature` is given, BYTES for inputs of other datatypes are refused before their elements are read singly.

    Raises:
        InvalidInput: the request cannot be read.
        TooLarge: it has too many objects and lists of JSON.
        Unavailable: raised by `room`, which is called before the values of the JSON are made.
    """
    if size := parsed_bytes(memoryview(body)[:header_length]):
        room(size)
    if (len(body) if header_length is None else header_length) <= _UNCOLLECTED_BYTES:
        return _decode_request(body, header_length, signature)
    with _no_collection():
        return _decode_request(body, header_length, signature)


@contextmanager
def _no_collection() -> Iterator[None]:
    """Pause garbage collection.

    A large document has no cycles, and the collector would traverse it repeatedly as it grows.
    """
    pauses = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if pauses:
            gc.enable()


def _decode_request(body: Body, header_length: int | None, signature: Signature | None) -> InferRequest:
    document, binary = _split(body, header_length)
    if signature is not None:
        _check_bytes(document.get("inputs"), signature)
    parameters = _check_supported(_parameters(document, "parameters"), "parameters")
    everything = _flag(parameters, "binary_data_output", default=False)
    inputs = _decode_tensors(document, "inputs", binary)
    if not inputs:
        msg = "inputs: a request has at least one tensor"
        raise InvalidInput(msg, field="inputs")
    return InferRequest(inputs, _parse_outputs(document, everything), _text(document, "id"), parameters, everything)


def decode_response(body: Body, header_length: int | None = None) -> InferResponse:
    """Read an answer; like `decode_request` for requests."""
    document, binary = _split(body, header_length)
    return InferResponse(
        model_name=_text(document, "model_name") or "",
        outputs=_decode_tensors(document, "outputs", binary),
        model_version=_text(document, "model_version"),
        id=_text(document, "id"),
        parameters=_parameters(document, "parameters"),
    )


def encode_request(request: InferRequest, *, binary: bool = True) -> EncodedBody:
    """Encode a request, its tensors all as binary data or all as JSON."""
    parameters = dict(request.parameters)
    if request.binary_output:
        parameters["binary_data_output"] = True
    document: dict[str, Any] = _present(id=request.id, parameters=parameters or None)
    if request.outputs:
        document["outputs"] = [
            {"name": output.name, "parameters": {"binary_data": output.binary}} for output in request.outputs
        ]
    return _encode(document, "inputs", request.inputs, frozenset(request.inputs if binary else ()))


def encode_response(response: InferResponse, *, binary: Collection[str] = ()) -> EncodedBody:
    """Encode an answer. Outputs not named in `binary` become JSON; IPnextError names one that JSON cannot represent.

    InvalidInput if the client wants more JSON elements than allowed.
    """
    _check_json_elements({name: tensor for name, tensor in response.outputs.items() if name not in binary})
    try:
        return _encode(answer_head(response), "outputs", response.outputs, binary)
    except InvalidInput as error:  # caused by the model, not the client
        raise IPnextError(error.message) from error


def answer_head(response: InferResponse) -> dict[str, Any]:
    """Return the document of an answer without its outputs."""
    parameters = dict(response.parameters) or None
    about = _present(model_version=response.model_version, id=response.id, parameters=parameters)
    return {"model_name": response.model_name, **about}


def _check_json_elements(tensors: Mapping[str, Tensor]) -> None:
    count = sum(tensor.data.size for tensor in tensors.values())
    if count > MAX_JSON_ELEMENTS:
        names = ", ".join(map(repr, tensors))
        msg = f"outputs: {names} have {count} elements, JSON carries at most {MAX_JSON_ELEMENTS}; ask for binary data"
        raise InvalidInput(msg, field="outputs", value=count)


def _encode(document: dict[str, Any], key: str, tensors: Mapping[str, Tensor], binary: Collection[str]) -> EncodedBody:
    entries: list[dict[str, Any]] = []
    chunks: list[bytes] = []
    for name, tensor in tensors.items():
        entry: dict[str, Any] = {"name": name, "datatype": tensor.datatype, "shape": list(tensor.shape)}
        if name in binary:
            chunks.append(to_binary(tensor))
            entry["parameters"] = {_BINARY_SIZE: len(chunks[-1])}
        else:
            entry["data"] = to_json(name, tensor)
        entries.append(entry)
    header = orjson.dumps({**document, key: entries})
    if not chunks:
        return EncodedBody(header, None)
    header += b" " * (-len(header) % _ALIGNMENT)  # so that the first tensor is aligned in memory
    return EncodedBody(b"".join([header, *chunks]), len(header))


def _split(body: Body, header_length: int | None) -> tuple[Mapping[str, Any], memoryview | None]:
    view = memoryview(body)
    if header_length is None:
        return _parse_json(view), None
    if not 0 < header_length <= len(view):
        msg = f"{HEADER_LENGTH}: {header_length} must be from 1 to the body's {len(view)} bytes"
        raise InvalidInput(msg, field=HEADER_LENGTH, value=header_length)
    return _parse_json(view[:header_length]), view[header_length:]


def _parse_json(text: memoryview) -> Mapping[str, Any]:
    try:
        document = orjson.loads(text)
    except ValueError:
        document = _parse_leniently(text)
    if not isinstance(document, dict):
        msg = f"the body must be a JSON object, got {type(document).__name__}"
        raise InvalidInput(msg)
    return document


def _parse_leniently(text: memoryview) -> Any:
    """Parse JSON that may have NaN, infinity or broken strings; the reader of their tensor refuses those."""
    try:
        return json.loads(bytes(text))
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError) as error:
        msg = f"the body is not JSON: {error}"
        raise InvalidInput(msg) from error
    except ValueError as error:  # Python's limit of digits, whose text names a setting of the interpreter
        msg = f"the body has a whole number of more than {sys.get_int_max_str_digits()} digits"
        raise InvalidInput(msg) from error


def _check_bytes(entries: object, signature: Signature) -> None:
    """Refuse BYTES for inputs that do not exist or have another datatype.

    Malformed entries are left to the tensor reader.
    """
    for entry in entries if isinstance(entries, list) else ():
        if isinstance(entry, dict) and entry.get("datatype") == "BYTES":
            check_takes_bytes(_name(entry, "inputs"), signature)


def _decode_tensors(document: Mapping[str, Any], key: str, binary: memoryview | None) -> dict[str, Tensor]:
    entries = document.get(key)
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        msg = f"{key}: must be a list of tensors"
        raise InvalidInput(msg, field=key)
    tensors: dict[str, Tensor] = {}
    position = 0
    for entry in entries:
        name = _name(entry, key)
        if name in tensors:
            msg = f"{key}: tensor {name!r} is given twice"
            raise InvalidInput(msg, field=key, value=name)
        tensors[name], position = _decode_tensor(name, entry, binary, position)
    if binary is not None and position != len(binary):
        msg = f"{key}: {len(binary) - position} bytes of binary data belong to no tensor"
        raise InvalidInput(msg, field=key, value=len(binary))
    return tensors


def _decode_tensor(name: str, entry: Mapping[str, Any], binary: memoryview | None, position: int) -> tuple[Tensor, int]:
    datatype = check_datatype(name, entry.get("datatype"))
    shape = check_shape(name, entry.get("shape"))
    size = _check_supported(_parameters(entry, f"{name}.parameters"), f"tensor {name!r}").get(_BINARY_SIZE)
    if size is None:
        return from_json(name, datatype, shape, entry.get("data")), position
    if type(size) is not int or size < 0 or "data" in entry:
        msg = f"tensor {name!r}: {_BINARY_SIZE} must be a whole number of bytes, and then there is no data"
        raise InvalidInput(msg, field=f"{name}.{_BINARY_SIZE}", value=size)
    if binary is None or position + size > len(binary):
        left = 0 if binary is None else len(binary) - position
        msg = f"tensor {name!r}: {_BINARY_SIZE} is {size}, but {left} bytes of binary data are left"
        raise InvalidInput(msg, field=f"{name}.{_BINARY_SIZE}", value=size)
    return from_binary(name, datatype, shape, binary[position : position + size]), position + size


def _parse_outputs(document: Mapping[str, Any], everything: bool) -> tuple[RequestedOutput, ...]:
    entries = document.get("outputs", [])
    if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
        msg = "outputs: must be a list of objects with a name"
        raise InvalidInput(msg, field="outputs")
    return tuple(_requested_output(_name(entry, "outputs"), entry, everything) for entry in entries)


def _requested_output(name: str, entry: Mapping[str, Any], everything: bool) -> RequestedOutput:
    parameters = _check_supported(_parameters(entry, f"{name}.parameters"), f"output {name!r}")
    return RequestedOutput(name, _flag(parameters, "binary_data", default=everything))


def _name(entry: Mapping[str, Any], key: str) -> str:
    name = entry.get("name")
    if not isinstance(name, str) or not name or not _is_unicode(name):
        msg = f"{key}: each tensor needs a name, got {show_value(name)}"
        raise InvalidInput(msg, field=f"{key}.name", value=name)
    return name


def _parameters(entry: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    parameters = entry.get("parameters")
    if parameters is None:
        return {}
    if not isinstance(parameters, dict):
        msg = f"{where}: must be an object"
        raise InvalidInput(msg, field=where)
    return parameters


def _check_supported(parameters: Mapping[str, Any], where: str) -> Mapping[str, Any]:
    for name in _UNSUPPORTED.keys() & parameters.keys():
        msg = f"{where}: parameter {name!r} is not supported; {_UNSUPPORTED[name]}"
        raise InvalidInput(msg, field=name)
    return parameters


def _flag(parameters: Mapping[str, Any], key: str, *, default: bool) -> bool:
    value = parameters.get(key, default)
    if not isinstance(value, bool):
        msg = f"parameters.{key}: must be true or false"
        raise InvalidInput(msg, field=key, value=value)
    return value


def _text(document: Mapping[str, Any], key: str) -> str | None:
    value = document.get(key)
    if value is not None and not (isinstance(value, str) and _is_unicode(value)):
        msg = f"{key}: must be a string of Unicode text"
        raise InvalidInput(msg, field=key, value=value)
    return value


def _is_unicode(text: str) -> bool:
    """Whether a text has a UTF-8 form: JSON can spell lone surrogates, which have none and cannot be in an answer."""
    return text.isascii() or not any("\ud800" <= character <= "\udfff" for character in text)


def _present(**values: object) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value is not None}
