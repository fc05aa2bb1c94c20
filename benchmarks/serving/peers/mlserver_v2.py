"""MLServer: V2 in JSON.

Inference in the server's own process (no pool: faster for one model), no metrics, no gzip, no debug.
"""

import asyncio

import torch
from mlserver import MLModel, MLServer
from mlserver.codecs import NumpyCodec
from mlserver.settings import ModelSettings, Settings
from mlserver.types import InferenceRequest, InferenceResponse

from benchmarks.serving.peers.given import (
    BATCH_ROWS,
    BATCH_WAIT_SECONDS,
    BATCHING,
    LOOPBACK,
    PORT,
    SECOND_PORT,
    model,
)


class Served(MLModel):
    """The module behind MLServer's interface."""

    async def load(self) -> bool:
        """Make the model of the seed."""
        self.module = model()
        return True

    async def predict(self, payload: InferenceRequest) -> InferenceResponse:
        """Scores."""
        given = {one.name: torch.from_numpy(NumpyCodec.decode_input(one)) for one in payload.inputs}
        with torch.inference_mode():
            score = self.module(given["ids"].reshape(-1, 26), given["dense"].reshape(-1, 13)).numpy()
        return InferenceResponse(model_name=self.name, outputs=[NumpyCodec.encode_output("score", score)])


async def serve() -> None:
    """Until SIGTERM."""
    settings = Settings(
        host=LOOPBACK,
        http_port=PORT,
        grpc_port=SECOND_PORT,
        parallel_workers=0,
        metrics_endpoint=None,
        debug=False,
        gzip_enabled=False,
        load_models_at_startup=False,
    )
    batches = {"max_batch_size": BATCH_ROWS, "max_batch_time": BATCH_WAIT_SECONDS} if BATCHING else {}
    await MLServer(settings).start([ModelSettings(name="dlrm", implementation=Served, **batches)])


if __name__ == "__main__":
    asyncio.run(serve())
