"""An anchor, not a product: uvicorn with a bare ASGI function, raw tensors in the body, nothing checked."""

from collections.abc import Awaitable, Callable
from typing import Any

import numpy as np
import torch
import uvicorn

from benchmarks.serving.dlrm import FEATURES, TABLES
from benchmarks.serving.peers.given import LOOPBACK, PORT, model

ROW_BYTES = 8 * TABLES + 4 * FEATURES
MODULE = model()


async def app(
    scope: dict[str, Any], receive: Callable[[], Awaitable[Any]], send: Callable[[Any], Awaitable[None]]
) -> None:
    """Answers every request with scores as float32."""
    if scope["type"] != "http":
        return
    body, more = b"", True
    while more:
        message = await receive()
        body, more = body + message.get("body", b""), message.get("more_body", False)
    batch = len(body) // ROW_BYTES
    memory = np.frombuffer(bytearray(body), np.uint8)
    ids = memory[: batch * TABLES * 8].view(np.int64).reshape(batch, TABLES)
    dense = memory[batch * TABLES * 8 :].view(np.float32).reshape(batch, FEATURES)
    with torch.inference_mode():
        answer = MODULE(torch.from_numpy(ids), torch.from_numpy(dense)).numpy().tobytes()
    headers = [(b"content-type", b"application/octet-stream"), (b"content-length", str(len(answer)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": answer})


if __name__ == "__main__":
    uvicorn.run(app, host=LOOPBACK, port=PORT, log_level="warning", access_log=False, timeout_keep_alive=60)
