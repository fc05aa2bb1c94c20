"""The KServe SDK's model server: V2 in JSON and in binary.

One worker, no gRPC, no log of requests, no latency log; uvloop.
"""

import logging
from typing import Any

import torch
import uvicorn
from kserve import InferOutput, InferRequest, InferResponse, Model, ModelServer
from kserve.logging import trace_logger
from kserve.utils.utils import generate_uuid

from benchmarks.serving.peers.given import LOOPBACK, PORT, model


class OnLoopback(uvicorn.Config):
    """The SDK listens on all addresses and has no setting for it."""

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **{**named, "host": LOOPBACK, "access_log": False})


class Served(Model):
    """The module behind the SDK's interface."""

    def __init__(self) -> None:
        super().__init__("dlrm")
        self.module = model()
        self.ready = True

    async def predict(self, payload: InferRequest, headers: Any = None, response_headers: Any = None) -> InferResponse:  # noqa: ARG002
        """Scores. In the event loop: a thread pool would only add to it."""
        given = {one.name: torch.from_numpy(one.as_numpy().copy()) for one in payload.inputs}
        with torch.inference_mode():
            score = self.module(**given).numpy()
        output = InferOutput("score", list(score.shape), "FP32", data=score)
        return InferResponse(
            payload.id or generate_uuid(), "dlrm", [output], use_binary_outputs=payload.use_binary_outputs
        )


if __name__ == "__main__":
    uvicorn.Config = OnLoopback  # type: ignore[misc]  # the SDK has no setting for the address
    server = ModelServer(http_port=PORT, enable_grpc=False, enable_latency_logging=False)
    trace_logger.setLevel(logging.WARNING)
    server.start([Served()])
