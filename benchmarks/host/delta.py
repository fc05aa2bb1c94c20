"""What a delta snapshot saves over a full one.

Published -> answering, and bytes, for a table of which some rows changed.

    python -m benchmarks.host.delta  (--rows 10000000 --width 64 --changed 0.01 --rounds 3 --json out.json)

Each round is one of both in turn. A fresh host holds the parent. The clock runs from a snapshot directory on the
publisher's disk to the first right answer of the new generation: checked and copied into the artifact store, fetched
into the host's cache and checked again, loaded, warmed, asked. Making the directories is timed apart. All answers for
changed rows, and for as many others, are compared bit for bit between both hosts, and the delta applied on disk with
the full file. Memory is the growth of the host's proportional set size (pages shared with the page cache of others
count by their share). Needs room on the disk for seven times the model, and twice the model of memory.
"""

import argparse
import json
import os
import shutil
import socket
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import httpx
import numpy as np
import psutil
import torch
from rich.console import Console
from rich.table import Table
from torch import nn

from ipnext.artifacts.stores.file_store import FileArtifactStore
from ipnext.artifacts.upload import ingest_directory
from ipnext.infra.process.parent_death import tether
from ipnext.model.deployment.host_control import HostedSnapshot, HostHolds, HostState
from ipnext.model.registry.registry import SnapshotManifest
from serving.deltas.apply import apply_delta
from serving.deltas.export import export_delta
from serving.export import export_model
from serving.protocol.tensors import Tensor
from serving.protocol.v2 import InferRequest, decode_response, encode_request, parse_header_length

BATCH = 4096
KINDS = ("full", "delta")


class Ranker(nn.Module):
    """ids [B, 1] -> output [B, width]: a table and a small tower, whose answer shows every bit of the row."""

    def __init__(self, rows: int, width: int) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.EmbeddingBag(rows, width)
        self.top = nn.Linear(width, width)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        """Return the row, and the tower's result for it."""
        row: torch.Tensor = self.table(ids)
        return row + torch.relu(self.top(row))


@dataclass(frozen=True)
class Measured:
    """One publish, in seconds and bytes."""

    kind: str
    publish_seconds: float
    ready_seconds: float
    answer_seconds: float
    bytes: int
    memory_bytes: int

    @property
    def seconds(self) -> float:
        """Published -> answering."""
        return self.publish_seconds + self.ready_seconds + self.answer_seconds


@dataclass(frozen=True)
class Snapshots:
    """What is published: the parent, the same changes as a full snapshot and as a delta, and ids to ask for."""

    root: Path
    manifests: Mapping[str, SnapshotManifest]
    made_seconds: Mapping[str, float]
    changed: np.ndarray
    rows: int
    expected: np.ndarray
    """The module's own answer for the first changed rows."""


def make(root: Path, *, rows: int, width: int, part: float) -> Snapshots:
    """Train two snapshots, so to speak."""
    module = Ranker(rows, width).eval().requires_grad_(requires_grad=False)
    example = {"ids": torch.zeros(2, 1, dtype=torch.int64)}
    manifests = {"parent": export_model(module, example, root / "parent")}
    changed = torch.randperm(rows)[: max(1, int(rows * part))].sort().values
    module.table.weight[changed] += 0.5
    module.top.weight += 0.5
    seconds: dict[str, float] = {}
    for kind in KINDS:
        begin = time.perf_counter()
        if kind == "full":
            manifests[kind] = export_model(module, example, root / kind, parent=manifests["parent"].digest)
        else:
            manifests[kind] = export_delta(root / "parent", module, root / kind)
        seconds[kind] = time.perf_counter() - begin
    expected = module(changed[:64, None]).numpy()
    return Snapshots(root, manifests, seconds, changed.numpy(), rows, expected)


class Host:
    """A real host process over a store of its own, which holds the parent as generation 1."""

    def __init__(self, root: Path, snapshots: Snapshots) -> None:
        self.store = FileArtifactStore(root / "store")
        self._snapshots = snapshots
        self._client = httpx.Client(timeout=60)
        with socket.socket() as probe:
            probe.bind(("127.0.0.1", 0))
            port = probe.getsockname()[1]
        self._url = f"http://127.0.0.1:{port}"
        arguments = ["--port", str(port), "--region", "here", "--id", "host", "--artifacts", self.store.uri]
        self.process = subprocess.Popen(
            [sys.executable, "-m", "serving.host", *arguments, "--cache", str(root / "cache")],
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            stderr=subprocess.DEVNULL,
            preexec_fn=tether(),  # noqa: PLW1509  # started before any thread
        )

    def close(self) -> None:
        """End the process."""
        self.process.terminate()
        self.process.wait(30)
        self._client.close()

    def hold(self, kinds: Mapping[int, str]) -> None:
        """Have these snapshots answer, by generation; returns once they do."""
        holds = tuple(self._hold(number, kind) for number, kind in kinds.items())
        content = HostHolds(holds=holds).model_dump_json()
        while True:
            try:
                self._client.put(f"{self._url}/control/holds", content=content).raise_for_status()
                break
            except httpx.ConnectError:
                time.sleep(0.05)
        while True:
            state = HostState.model_validate_json(self._client.get(f"{self._url}/control/state").content)
            if state.failures:
                msg = f"a snapshot failed: {state.failures}"
                raise SystemExit(msg)
            if {held.generation for held in state.ready} == set(kinds):
                return
            time.sleep(0.002)

    def _hold(self, number: int, kind: str) -> HostedSnapshot:
        digest = self._snapshots.manifests[kind].digest
        return HostedSnapshot(
            model="m", part="p", engine="torch", snapshot=number, digest=digest,
            uri=f"{self.store.uri}/snapshots/{digest}", generations=(number,),
        )  # fmt: skip

    def ask(self, ids: np.ndarray, generation: int) -> np.ndarray:
        """Return the answers for some rows."""
        tensors = {"ids": Tensor("INT64", np.ascontiguousarray(ids[:, None]))}
        encoded = encode_request(InferRequest(tensors, binary_output=True))
        headers = {**encoded.headers, "x-ipnext-generation": str(generation)}
        response = self._client.post(f"{self._url}/parts/m/p/infer", content=encoded.body, headers=headers)
        response.raise_for_status()
        length = parse_header_length(response.headers.get("inference-header-content-length"))
        return decode_response(bytearray(response.content), length).outputs["output"].data

    def memory_bytes(self) -> int:
        """Proportional set size."""
        return int(psutil.Process(self.process.pid).memory_full_info().pss)


@contextmanager
def host(root: Path, snapshots: Snapshots) -> Iterator[Host]:
    """Run a host that answers with the parent, its files as warm as after a while of serving."""
    root.mkdir()
    started = Host(root, snapshots)
    try:
        ingest_directory(started.store, snapshots.root / "parent")
        started.hold({1: "parent"})
        started.ask(snapshots.changed[:BATCH], 1)
        yield started
    finally:
        started.close()
        shutil.rmtree(root)


def measure(started: Host, snapshots: Snapshots, kind: str) -> Measured:
    """Publish one and wait for its first answer, which must be the module's."""
    before = started.memory_bytes()
    begin = time.perf_counter()
    ingest_directory(started.store, snapshots.root / kind)
    published = time.perf_counter()
    started.hold({1: "parent", 2: kind})
    ready = time.perf_counter()
    answer = started.ask(snapshots.changed[: len(snapshots.expected)], 2)
    end = time.perf_counter()
    if answer.tobytes() != snapshots.expected.tobytes():
        msg = f"{kind}: the first answer has other bits than the model"
        raise SystemExit(msg)
    return Measured(
        kind, published - begin, ready - published, end - ready, snapshots.manifests[kind].size_bytes,
        started.memory_bytes() - before,
    )  # fmt: skip


def compare(left: Host, right: Host, snapshots: Snapshots) -> int:
    """Ask both hosts for every changed row and as many others; the number of rows asked for. Every bit must agree."""
    others = np.random.default_rng(1).integers(0, snapshots.rows, len(snapshots.changed))
    ids = np.concatenate([snapshots.changed, others])
    for start in range(0, len(ids), BATCH):
        batch = ids[start : start + BATCH]
        if left.ask(batch, 2).tobytes() != right.ask(batch, 2).tobytes():
            msg = f"rows {start} to {start + BATCH} of the comparison differ"
            raise SystemExit(msg)
    return len(ids)


def same_file(snapshots: Snapshots, work: Path) -> bool:
    """Whether the delta applied on disk is the full snapshot: equal manifests have equal SHA-256 of every file."""
    applied = apply_delta(snapshots.root / "parent", snapshots.root / "delta", work / "applied")
    shutil.rmtree(work / "applied")
    return applied.digest == snapshots.manifests["full"].digest


def run(arguments: argparse.Namespace, work: Path) -> dict[str, object]:
    """All rounds, and the comparison."""
    console = Console()
    root = work / "snapshots"
    root.mkdir()
    snapshots = make(root, rows=arguments.rows, width=arguments.width, part=arguments.changed)
    measured: list[Measured] = []
    rows = 0
    for number in range(arguments.rounds):
        with host(work / "full", snapshots) as full, host(work / "delta", snapshots) as delta:
            pair = {"full": full, "delta": delta}
            order = KINDS if number % 2 == 0 else KINDS[::-1]
            measured += [measure(pair[kind], snapshots, kind) for kind in order]
            rows = compare(full, delta, snapshots) if number == 0 else rows
    same = same_file(snapshots, work)
    if not same:
        msg = "the delta applied on disk is not the full snapshot"
        raise SystemExit(msg)
    answer = summary(arguments, snapshots, measured, rows)
    console.print(table(answer))
    return answer


def summary(
    arguments: argparse.Namespace, snapshots: Snapshots, measured: list[Measured], compared: int
) -> dict[str, object]:
    """Medians by kind, and the delta's over the full one's."""
    fields = ("publish_seconds", "ready_seconds", "answer_seconds", "seconds", "bytes", "memory_bytes")
    medians = {
        kind: {name: statistics.median(getattr(m, name) for m in measured if m.kind == kind) for name in fields}
        for kind in KINDS
    }
    for kind in KINDS:
        medians[kind]["made_seconds"] = snapshots.made_seconds[kind]
    ratios = {name: medians["delta"][name] / max(medians["full"][name], 1e-9) for name in medians["full"]}
    return {
        "rows": arguments.rows,
        "width": arguments.width,
        "changed_rows": len(snapshots.changed),
        "rounds": arguments.rounds,
        "medians": medians,
        "delta_over_full": ratios,
        "compared_rows": compared,
        "equal_in_every_bit": True,
        "machine": {"cores": os.cpu_count(), "torch": str(torch.__version__)},
        "runs": [asdict(each) for each in measured],
    }


def table(answer: Mapping[str, object]) -> Table:
    """For people."""
    medians: Mapping[str, Mapping[str, float]] = answer["medians"]  # type: ignore[assignment]  # made above
    ratios: Mapping[str, float] = answer["delta_over_full"]  # type: ignore[assignment]  # made above
    made = Table(title=f"{answer['changed_rows']:,} of {answer['rows']:,} rows changed", box=None, title_justify="left")
    for head in ("", "full", "delta", "delta / full"):
        made.add_column(head, justify="left" if not head else "right")
    for name, words in NAMES.items():
        form = "{:,.0f}" if name.endswith("bytes") else "{:.3f}"
        made.add_row(
            words, form.format(medians["full"][name]), form.format(medians["delta"][name]), f"{ratios[name]:.3f}"
        )
    return made


NAMES = {
    "made_seconds": "written by the trainer, s",
    "publish_seconds": "into the store, s",
    "ready_seconds": "told -> ready, s",
    "answer_seconds": "first answer, s",
    "seconds": "published -> answering, s",
    "bytes": "bytes sent",
    "memory_bytes": "memory of the host, bytes more",
}


def main() -> None:
    """Read the options, measure in a directory that vanishes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--width", type=int, default=64)
    parser.add_argument("--changed", type=float, default=0.01, help="part of the rows")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--work", type=Path, default=None, help="directory to work in; default: a temporary one")
    parser.add_argument("--json", type=Path, default=None)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ipnext-delta-", dir=arguments.work) as work:
        answer = run(arguments, Path(work))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(answer, indent=1) + "\n")


if __name__ == "__main__":
    main()
