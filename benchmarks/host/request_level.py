"""What it gives to send a user once for all candidates: a two-tower model with and without request inputs.

    python -m benchmarks.host.request_level  (--candidates 256 --history 100 --seconds 5 --json out.json)

One process, one torch thread. The baseline is the same loaded snapshot, asked with the user repeated for each
candidate, as a client without request inputs sends it. Both take the same users and candidates in turns; ratios are of
the same run. Bytes are those of the request's tensors.
"""

import argparse
import json
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from serving.engines.torch.engine import TorchEngine, TorchPart
from serving.export import export_model
from serving.protocol.tensors import Array

ITEMS = 100_000
USERS = 100_000
WIDTH = 32
USER_INPUTS = ("user", "history", "context")
Request = Mapping[str, Array]


class Towers(nn.Module):
    """user [B], history [B, H], context [B, 32], item [B] -> score [B].

    Towers that meet in a product and a small layer.
    """

    def __init__(self) -> None:
        super().__init__()
        self.users, self.items = nn.Embedding(USERS, WIDTH), nn.Embedding(ITEMS, WIDTH)
        self.user_tower = nn.Sequential(
            nn.Linear(3 * WIDTH, 512), nn.ReLU(), nn.Linear(512, 256), nn.ReLU(), nn.Linear(256, 64)
        )
        self.item_tower = nn.Sequential(nn.Linear(WIDTH, 128), nn.ReLU(), nn.Linear(128, 64))
        self.top = nn.Sequential(nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 1))

    def forward(self, user: Tensor, history: Tensor, context: Tensor, item: Tensor) -> Tensor:
        """Probabilities."""
        seen = self.items(history).mean(1)
        u = self.user_tower(torch.cat([self.users(user), seen, context], 1))
        i = self.item_tower(self.items(item))
        return torch.sigmoid(self.top(torch.cat([u, i], 1)).squeeze(1) + (u * i).sum(1))


def request(candidates: int, history: int, seed: int) -> Request:
    """One user and so many candidates."""
    random = np.random.default_rng(seed)
    return {
        "user": random.integers(0, USERS, 1),
        "history": random.integers(0, ITEMS, (1, history)),
        "context": random.standard_normal((1, WIDTH)).astype(np.float32),
        "item": random.integers(0, ITEMS, candidates),
    }


def repeated(once: Request) -> Request:
    """As a client sends it if each row has its user."""
    rows = len(once["item"])
    return {name: np.repeat(array, rows, 0) if name in USER_INPUTS else array for name, array in once.items()}


def size(given: Request) -> int:
    """Bytes of all tensors."""
    return sum(array.nbytes for array in given.values())


def timed(part: TorchPart, pairs: Sequence[tuple[Request, Request]], seconds: float) -> tuple[list[float], list[float]]:
    """Seconds of each pass: given once, and repeated."""
    times: tuple[list[float], list[float]] = ([], [])
    end = time.perf_counter() + seconds
    while time.perf_counter() < end:
        for pair in pairs:
            for given, found in zip(pair, times, strict=True):
                began = time.perf_counter()
                part.infer(given)
                found.append(time.perf_counter() - began)
    return times


def measure(part: TorchPart, candidates: int, arguments: argparse.Namespace) -> dict[str, object]:
    """One number of candidates."""
    once = [request(candidates, arguments.history, seed) for seed in range(20)]
    pairs = [(given, repeated(given)) for given in once]
    timed(part, pairs, arguments.seconds / 5)
    single, full = (np.array(times) for times in timed(part, pairs, arguments.seconds))
    worst = max(float(np.abs(part.infer(a)["output"] - part.infer(b)["output"]).max()) for a, b in pairs)
    return {
        "candidates": candidates,
        "once_median_us": round(float(np.median(single)) * 1e6, 1),
        "repeated_median_us": round(float(np.median(full)) * 1e6, 1),
        "median_ratio": round(float(np.median(single) / np.median(full)), 3),
        "min_ratio": round(float(single.min() / full.min()), 3),
        "bytes_once": size(pairs[0][0]),
        "bytes_repeated": size(pairs[0][1]),
        "largest_difference": worst,
    }


def main() -> None:
    """Print a table, and write JSON if requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--candidates", type=int, nargs="+", default=[16, 64, 256, 1024])
    parser.add_argument("--history", type=int, default=100, help="items that a user has seen")
    parser.add_argument("--seconds", type=float, default=5.0, help="for each number of candidates")
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory(prefix="ipnext-bench-") as place:
        example = {name: torch.from_numpy(array) for name, array in request(4, arguments.history, 0).items()}
        manifest = export_model(Towers(), example, Path(place) / "towers", request_inputs=USER_INPUTS)
        part = TorchEngine().load(Path(place) / "towers", manifest, {})
        part.warm_up()
        lines = [measure(part, candidates, arguments) for candidates in arguments.candidates]
    table = Table(*lines[0])
    for line in lines:
        table.add_row(*map(str, line.values()))
    Console(width=160).print(table)
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(lines, indent=1))


if __name__ == "__main__":
    main()
