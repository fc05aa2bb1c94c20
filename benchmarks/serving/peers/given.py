"""What every peer's script is told, and the one model that all of them answer with."""

import os

import torch

from benchmarks.serving.dlrm import Dlrm, make

LOOPBACK = "127.0.0.1"
PORT = int(os.environ.get("BENCH_PORT", "0"))
SECOND_PORT = int(os.environ.get("BENCH_SECOND_PORT", "0"))
"""For a server that cannot do without another one."""
ROWS = int(os.environ.get("BENCH_ROWS", "0"))
BATCHING = os.environ.get("BENCH_BATCHING") == "1"
"""Whether requests that come together are answered together, if the peer does that."""
BATCH_ROWS = 32
BATCH_WAIT_SECONDS = 0.001


def model() -> Dlrm:
    """With one torch thread."""
    return make(ROWS)


def scores(module: Dlrm, ids: object, dense: object) -> list[float]:
    """Of nested lists."""
    with torch.inference_mode():
        found: list[float] = module(torch.tensor(ids), torch.tensor(dense, dtype=torch.float32)).tolist()
    return found
