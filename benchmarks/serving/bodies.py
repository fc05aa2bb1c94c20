"""Forms of a request's body and of its answer, and how they are written and read."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import orjson

from benchmarks.serving.http_wire import Answer, request_bytes
from serving.protocol.tensors import Tensor
from serving.protocol.v2 import HEADER_LENGTH, InferRequest, decode_response, encode_request, parse_header_length

Arrays = Mapping[str, npt.NDArray[np.generic]]
Scores = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Form:
    """One way to write arrays into a body, with the headers that say so, and to read the scores of the answer."""

    name: str
    write: Callable[[Arrays], tuple[bytes, Mapping[str, str]]]
    read: Callable[[Answer], Scores]

    def request(self, path: str, arrays: Arrays, headers: Mapping[str, str] | None = None) -> bytes:
        """Return the bytes of a whole request."""
        body, own = self.write(arrays)
        return request_bytes(path, body, {**own, **(headers or {})})


def _write_v2(arrays: Arrays, *, binary: bool) -> tuple[bytes, Mapping[str, str]]:
    kinds = {"i": "INT64", "f": "FP32"}
    tensors = {name: Tensor(kinds[array.dtype.kind], array) for name, array in arrays.items()}  # type: ignore[arg-type]  # names of V2
    encoded = encode_request(InferRequest(tensors, binary_output=binary), binary=binary)
    return encoded.body, encoded.headers


def _read_v2(answer: Answer) -> Scores:
    length = parse_header_length(answer.headers.get(HEADER_LENGTH))
    outputs = decode_response(bytearray(answer.body), length).outputs
    return np.asarray(next(iter(outputs.values())).data, np.float32).reshape(-1)


def _write_json(arrays: Arrays) -> tuple[bytes, Mapping[str, str]]:
    return orjson.dumps(dict(arrays), option=orjson.OPT_SERIALIZE_NUMPY), {"content-type": "application/json"}


def _write_rows(arrays: Arrays) -> tuple[bytes, Mapping[str, str]]:
    rows = np.concatenate([arrays["ids"].astype(np.float32), arrays["dense"]], 1)
    return _write_json({"rows": rows})


def _read_json(answer: Answer) -> Scores:
    found = orjson.loads(answer.body)
    return np.asarray(found["score"] if isinstance(found, dict) else found, np.float32)


def _write_raw(arrays: Arrays) -> tuple[bytes, Mapping[str, str]]:
    body = arrays["ids"].tobytes() + arrays["dense"].tobytes()
    return body, {"content-type": "application/octet-stream"}


V2_JSON = Form("V2 JSON", lambda arrays: _write_v2(arrays, binary=False), _read_v2)
V2_BINARY = Form("V2 binary", lambda arrays: _write_v2(arrays, binary=True), _read_v2)
OWN_JSON = Form("own JSON", _write_json, _read_json)
"""An object of nested lists, as a peer without V2 takes it."""
ROWS_JSON = Form("own JSON, one array", _write_rows, _read_json)
"""Each row's ids and numbers in one array of floats, for a peer that joins one array only."""
RAW = Form("raw bytes", _write_raw, lambda answer: np.frombuffer(answer.body, np.float32))
"""ids, then dense, as they lie in memory; back comes score."""
FORMS: Mapping[str, Form] = {form.name: form for form in (V2_JSON, V2_BINARY, OWN_JSON, ROWS_JSON, RAW)}
