"""LitServe: its own JSON.

One worker process for the model and one for the API, as it comes; no request log, no docs page.
"""

from collections.abc import Sequence
from typing import Any

import litserve
import torch
from torch import Tensor

from benchmarks.serving.peers.given import BATCH_ROWS, BATCH_WAIT_SECONDS, BATCHING, LOOPBACK, PORT, model


class Served(litserve.LitAPI):
    """The module behind LitServe's interface; requests that it joins are joined along the rows."""

    def setup(self, device: str) -> None:  # noqa: ARG002 - there is the CPU only
        """Make the model of the seed."""
        self.module = model()

    def decode_request(self, request: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Tensors of a request."""
        return torch.tensor(request["ids"]), torch.tensor(request["dense"], dtype=torch.float32)

    def batch(self, inputs: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor, list[int]]:
        """One batch of several requests, and how many rows each has."""
        ids, dense = zip(*inputs, strict=True)
        return torch.cat(ids), torch.cat(dense), [len(rows) for rows in ids]

    def predict(self, given: Any) -> Any:
        """Scores."""
        with torch.inference_mode():
            score = self.module(given[0], given[1])
        return (score, given[2]) if len(given) > 2 else score

    def unbatch(self, output: Any) -> list[Tensor]:
        """Return the rows of each request again."""
        return list(output[0].split(output[1]))

    def encode_response(self, output: Tensor) -> dict[str, list[float]]:
        """Scores as JSON."""
        return {"score": output.tolist()}


if __name__ == "__main__":
    api = Served(max_batch_size=BATCH_ROWS, batch_timeout=BATCH_WAIT_SECONDS) if BATCHING else Served()
    server = litserve.LitServer(api, accelerator="cpu", workers_per_device=1, disable_openapi_url=True)
    server.run(
        host=LOOPBACK,
        port=PORT,
        num_api_servers=1,
        log_level="warning",
        access_log=False,
        generate_client_file=False,
        timeout_keep_alive=60,
    )
