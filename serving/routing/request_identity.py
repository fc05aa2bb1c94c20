"""What makes two requests the same for the host or engine that gets them, however they were written. Pure functions.

Requests that were lost are recognised by it (`serving.routing.lost_requests`): another order of keys, another escape or
a field that nothing reads does not make another request.
"""

from collections.abc import Iterator, Mapping
from typing import Any, Final

import numpy as np
import orjson

from ipnext.errors import IPnextError
from serving.protocol.tensors import Tensor, to_binary
from serving.protocol.v2 import Body, decode_request

UNREAD_FIELDS: Final = frozenset(
    {
        *("user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "request_id"),
        *("stream", "stream_options"),
    }
)
"""Fields of OpenAI requests that change nothing of an engine's work: names, and the form of the answer."""
_LEAST_WHOLE: Final = -(2.0**63)
_ABOVE_WHOLE: Final = 2.0**64
"""orjson reads what has more than 64 bits as a float, and writes no such integer."""
_AFTER_NUMBERS: Final = (b",", b"]", b"}")


def openai_identity(body: Mapping[str, Any], content: Body) -> Body:
    """Return the identity of an OpenAI request, from its parsed body. A field that is null is one that was left out.

    `content` is the unparsed body, which is returned if the parsed one cannot be written.
    """
    read = {name: _whole(value) for name, value in body.items() if value is not None and name not in UNREAD_FIELDS}
    try:
        identity = orjson.dumps(read, option=orjson.OPT_SORT_KEYS)
    except TypeError:
        return content
    for end in _AFTER_NUMBERS:  # whole numbers that were written as 1.0 or 1e0; a text may lose the same
        identity = identity.replace(b".0" + end, end)
    return identity


def _whole(value: Any) -> Any:
    """Return a number without its fraction of zero. Larger ones have the same form however they are written."""
    whole = isinstance(value, float) and _LEAST_WHOLE <= value < _ABOVE_WHOLE and value.is_integer()
    return int(value) if whole else value


def v2_identity(content: Body, header_length: int | None) -> Iterator[Body]:
    """Yield the pieces of the identity of a V2 request: its tensors, whether they came as JSON or as binary data.

    The body itself if it cannot be decoded.
    """
    try:
        inputs = decode_request(content, header_length).inputs
    except IPnextError:
        yield content
        return
    for name, tensor in sorted(inputs.items()):
        yield f"{name}\0{tensor.datatype}\0{tensor.data.shape}".encode()
        yield _data(tensor)


def _data(tensor: Tensor) -> Body:
    """Return the data of a tensor, without a copy if its elements lie one after the other."""
    if tensor.datatype == "BYTES" or not tensor.data.size:
        return to_binary(tensor)
    return np.ascontiguousarray(tensor.data).reshape(-1).view(np.uint8).data
