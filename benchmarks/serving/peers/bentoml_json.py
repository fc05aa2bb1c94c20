"""BentoML: its own JSON, arrays by its NumPy types. One worker, no request log, no metrics.

Its batching takes one array an API, so there a row's ids and numbers travel as the 39 floats of one row.
"""

import os
import sys
from pathlib import Path
from typing import Annotated

import bentoml
import numpy as np
import torch
from bentoml.validators import DType

from benchmarks.serving.dlrm import TABLES
from benchmarks.serving.peers.given import BATCH_ROWS, BATCHING, LOOPBACK, PORT, model

Ids = Annotated[np.ndarray, DType("int64")]
Floats = Annotated[np.ndarray, DType("float32")]


@bentoml.service(workers=1, traffic={"timeout": 30}, logging={"access": {"enabled": False}}, metrics={"enabled": False})
class Served:
    """The module behind BentoML's interface."""

    def __init__(self) -> None:
        self.module = model()

    if BATCHING:

        @bentoml.api(batchable=True, max_batch_size=BATCH_ROWS, max_latency_ms=1_000)
        def score(self, rows: Floats) -> Floats:
            """Scores of whole rows."""
            return self._score(np.ascontiguousarray(rows[:, :TABLES], np.int64), rows[:, TABLES:].copy())

    else:

        @bentoml.api
        def score(self, ids: Ids, dense: Floats) -> Floats:
            """Scores."""
            return self._score(ids, dense)

    def _score(self, ids: np.ndarray, dense: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            found: np.ndarray = self.module(torch.from_numpy(ids), torch.from_numpy(dense)).numpy()
        return found


if __name__ == "__main__":
    bento = str(Path(sys.executable).with_name("bentoml"))
    target = "benchmarks.serving.peers.bentoml_json:Served"
    options = [
        "--host",
        LOOPBACK,
        "--port",
        str(PORT),
        "--timeout-keep-alive",
        "60",
        "--working-dir",
        os.environ["PYTHONPATH"],
    ]
    os.execv(bento, [bento, "serve", target, "-q", *options])
