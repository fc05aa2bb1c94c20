"""The baseline of every figure.

The eager module's forward in this process, and the requests and answers that it is asked with.
"""

import time
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import torch

from benchmarks.serving.bodies import Arrays, Form, Scores
from benchmarks.serving.dlrm import SEED, WIDTH, draw, make
from benchmarks.serving.http_wire import Connection, answer_size, read_answer
from benchmarks.serving.servers.process import ServerProcess
from benchmarks.serving.timing import Contender
from ipnext.model.registry.registry import SnapshotManifest
from serving.export import export_model

REQUESTS = 32
"""Different requests of a batch size, sent in turn."""
EAGER = "eager forward, in process"
CLOSE = 1e-4


class Reference:
    """The module with its requests."""

    def __init__(self, rows: int, width: int = WIDTH, seed: int = SEED) -> None:
        self.rows = rows
        self.module = make(rows, width, seed)

    def requests(self, batch: int) -> list[dict[str, torch.Tensor]]:
        """Return the requests of a batch size."""
        return [draw(self.rows, batch, number) for number in range(REQUESTS)]

    def arrays(self, batch: int) -> list[Arrays]:
        """Return the same requests as numpy arrays."""
        return [{name: tensor.numpy() for name, tensor in request.items()} for request in self.requests(batch)]

    def scores(self, batch: int) -> list[Scores]:
        """Return the module's own answers to them."""
        with torch.inference_mode():
            return [self.module(**request).numpy() for request in self.requests(batch)]

    def export(self, directory: Path) -> SnapshotManifest:
        """Export the module as a snapshot."""
        return export_model(self.module, draw(self.rows, 4, 0), directory)

    def contender(self, batch: int) -> Contender:
        """Return the forward pass itself as a contender."""
        requests = self.requests(batch)

        def call(number: int) -> object:
            with torch.inference_mode():
                return self.module(**requests[number % REQUESTS])

        return Contender(EAGER, call, time.process_time)


class Asked:
    """A server that is asked over HTTP by one open connection."""

    def __init__(
        self, name: str, servers: Sequence[ServerProcess], path: str, form: Form, headers: dict[str, str]
    ) -> None:
        """Ask the first of `servers`; the CPU time of all of them counts."""
        self.name = name
        self.form = form
        self.port = servers[0].port
        self._servers = servers
        self._path = path
        self._headers = headers

    def answers(self, reference: Reference) -> bool:
        """Whether it answers a small request; ConnectionError or OSError if it does not."""
        [request] = self.written(reference, 1)[:1]
        with Connection(self.port, seconds=10) as connection:
            return answer_size(connection.exchange(request)) is not None

    def written(self, reference: Reference, batch: int) -> list[bytes]:
        """All requests of a batch size as bytes."""
        return [self.form.request(self._path, arrays, self._headers) for arrays in reference.arrays(batch)]

    def check(self, reference: Reference, batch: int) -> bool:
        """Whether all answers have the bits of the eager forward. RuntimeError if they are not even close."""
        for server in self._servers:
            server.look_again()
        with Connection(self.port) as connection:
            answers = [connection.exchange(request) for request in self.written(reference, batch)]
        expected, equal = reference.scores(batch), True
        for number, answer in enumerate(answers):
            found = self.form.read(read_answer(answer))
            if found.shape != expected[number].shape or not np.allclose(found, expected[number], atol=CLOSE):
                msg = f"{self.name}: wrong answer at batch {batch}: {found[:3]} for {expected[number][:3]}"
                raise RuntimeError(msg)
            equal = equal and bool(np.array_equal(found, expected[number]))
        return equal

    def contender(self, reference: Reference, batch: int, stack: ExitStack) -> Contender:
        """Whole exchanges on one connection, which `stack` closes."""
        requests, connection = self.written(reference, batch), stack.enter_context(Connection(self.port))
        return Contender(
            f"{self.name}, {self.form.name}",
            lambda number: connection.exchange(requests[number % REQUESTS]),
            self.cpu_seconds,
        )

    def cpu_seconds(self) -> float:
        """CPU time so far of all its processes."""
        return sum(server.cpu_seconds() for server in self._servers)
