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
_AFTER_NUMBERS: Final = (b",", b"]", b"}")


def openai_identity(body: Mapping[str, Any]) -> bytes:
    """Return the identity of an OpenAI request, from its parsed body. A field that is null is one that was left out."""
    read = {
        name: int(value) if isinstance(value, float) and value.is_integer() else value
        for name, value in body.items()
        if value is not None and name not in UNREAD_FIELDS
    }
    identity = orjson.dumps(read, option=orjson.OPT_SORT_KEYS)
    for end in _AFTER_NUMBERS:  # whole numbers that were written as 1.0 or 1e0; a text may lose the same
        identity = identity.replace(b".0" + end, end)
    return identity


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
