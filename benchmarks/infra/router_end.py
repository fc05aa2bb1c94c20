"""What clients see when a region's router ends: killed, and told to end, with the next one forked or started afresh.

    python -m benchmarks.infra.router_end  (--rounds 7 --clients 3 --json out.json --docs docs/benchmarks.md)

Two agents with Envoy and one torch host each, asked by as many clients in turns. `killed` is SIGKILL, `told to end`
SIGTERM. `wait` is the longest time from asking to an answer 200 in that round, `no answer` all that were answered
otherwise. The baseline is the fresh interpreter, and the longest wait of the same clients before.
"""

import argparse
import json
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
import psutil
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ipnext.artifacts.stores.locations import open_store
from ipnext.artifacts.upload import ingest_directory
from ipnext.errors import Unavailable
from ipnext.infra.local_agents import LocalProcessInfrastructure
from ipnext.infra.process.parent_death import tether
from ipnext.infra.process.ports import LOOPBACK, free_port
from ipnext.model.deployment.deployment import AssignedSnapshot, Deployment, DeploymentKey
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.registry.registry import GraphNode, PartGraph
from serving.export import export_model

BEGIN, END = "<!-- router end: begin -->", "<!-- router end: end -->"
WAYS: Mapping[str, Mapping[str, str]] = {"forked": {}, "fresh": {"IPNEXT_AGENT_FORK_SERVER": "[]"}}
ENDINGS: Mapping[str, signal.Signals | None] = {
    "nothing ends": None,
    "told to end": signal.SIGTERM,
    "killed": signal.SIGKILL,
}
SETTLED_SECONDS = 3.0
"""Between two endings: the next one is then no restart within a row."""
BODY = {"inputs": [{"name": "x", "datatype": "FP32", "shape": [1, 3], "data": [1.0, 2.0, 3.0]}]}
KEY = DeploymentKey(model="double", part="double", region="here", hardware="cpu")


class Double(nn.Module):
    """Twice what comes."""

    def forward(self, x: Tensor) -> Tensor:
        """Of any shape."""
        return x * 2


@dataclass
class Seen:
    """What clients were answered."""

    waits: list[float] = field(default_factory=list)
    unanswered: int = 0


class Room:
    """An agent that serves one model."""

    def __init__(self, place: Path, environment: Mapping[str, str]) -> None:
        place.mkdir()
        export_model(Double(), {"x": torch.zeros(2, 3)}, place / "double")
        store = f"file://{place}/store"
        source = ingest_directory(open_store(store), place / "double")
        self._held = AssignedSnapshot(snapshot=1, digest=source.manifest.digest, uri=source.uri, generations=(1,))
        port = free_port()
        self._place = place
        self._command = [
            sys.executable,
            "-m",
            "ipnext.infra.agent",
            "--region",
            "here",
            "--state",
            str(place / "state"),
        ]
        self._command += ["--port", str(port), "--gateway-port", "0", "--artifacts", store]
        self._command += ["--owner", str(os.getpid())]
        self._settings = {
            **os.environ,
            "OMP_NUM_THREADS": "1",
            "IPNEXT_COMPONENT_AUTHENTICATION": "none",
            **environment,
        }
        self.process = self.start()
        self.infra = LocalProcessInfrastructure({"here": f"http://{LOOPBACK}:{port}"})

    def start(self) -> "subprocess.Popen[bytes]":
        """Start an agent."""
        with (self._place / "agent.log").open("ab") as log:
            self.process = subprocess.Popen(
                self._command,
                env=self._settings,
                stdout=log,
                stderr=log,
                preexec_fn=tether(),  # noqa: PLW1509 - no other thread forks here
            )
        return self.process

    def supervisor(self) -> psutil.Process:
        """Return the parent of the region's processes."""
        pid = json.loads((self._place / "state" / "supervisor.json").read_text())["pid"]
        return psutil.Process(pid)

    def pids(self) -> set[int]:
        """Return the region's processes but its agent."""
        supervisor = self.supervisor()
        return {supervisor.pid, *(process.pid for process in supervisor.children())}

    def serve(self, *models: str) -> None:
        """Bring these models up, or `double` alone, and route to them; each has a host of its own."""
        self._until(lambda: True)
        for model in models or (KEY.model,):
            key = KEY.model_copy(update={"model": model})
            self.infra.apply(Deployment(key=key, replicas=1, engine="torch", units=1, qps=100, holds=(self._held,)))
        wanted = len(models or (KEY.model,))
        self._until(lambda: sum(1 in replica.ready for replica in self.infra.observe("here").replicas) == wanted)
        node = GraphNode(name="double", part="double", inputs={"x": "request.x"})
        graph = PartGraph(nodes=(node,), outputs={"y": "double.output"})
        served = ServedGeneration(generation=1, graph=graph, snapshots={"double": 1})
        share = RouteShare(to="here", generation=1, fraction=1.0)
        for model in models or (KEY.model,):
            self.infra.route(RouteTable(model=model, region="here", revision=1, shares=(share,), served=(served,)))

    def _until(self, true: Any) -> None:
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            with suppress(Unavailable):
                self.infra.observe("here")
                if true():
                    return
            time.sleep(0.05)
        msg = "the agent did not come up; see its log"
        raise RuntimeError(msg)

    @property
    def url(self) -> str:
        """Where clients ask."""
        return f"{self.infra.observe('here').gateway_url}/v2/models/double/infer"

    def router(self) -> psutil.Process:
        """Return the router's process."""
        children = self.supervisor().children(recursive=True)
        return next(p for p in children if "serving.router" in p.cmdline()[:3])

    def close(self) -> None:
        """End it with its region."""
        self.process.send_signal(signal.SIGINT)
        self.process.wait(30)
        self.infra.close()


@contextmanager
def asked(url: str, clients: int) -> Iterator[Seen]:
    """Clients that send one request after the other during the end."""
    seen, ended = Seen(), threading.Event()

    def ask() -> None:
        with httpx.Client(trust_env=False, timeout=60) as client:
            while not ended.is_set():
                began = time.perf_counter()
                try:
                    good = client.post(url, json=BODY).status_code == 200
                except httpx.TransportError:
                    good = False
                if good:
                    seen.waits.append(time.perf_counter() - began)
                else:
                    seen.unanswered += 1

    threads = [threading.Thread(target=ask) for _ in range(clients)]
    for thread in threads:
        thread.start()
    try:
        time.sleep(0.5)
        yield seen
    finally:
        ended.set()
        for thread in threads:
            thread.join()


def measure(arguments: argparse.Namespace, place: Path) -> dict[str, dict[str, Seen]]:
    """Way and ending -> the longest wait of each round, and how many had no answer in all of them."""
    rooms = {way: Room(place / way, environment) for way, environment in WAYS.items()}
    found = {way: {ending: Seen() for ending in ENDINGS} for way in WAYS}
    try:
        for room in rooms.values():
            room.serve()
        for _ in range(arguments.rounds):
            for ending, number in ENDINGS.items():
                for way, room in rooms.items():
                    with asked(room.url, arguments.clients) as seen:
                        if number is not None:
                            room.router().send_signal(number)
                        time.sleep(SETTLED_SECONDS)
                        while ended_router(room):
                            time.sleep(0.1)
                    found[way][ending].waits.append(max(seen.waits))
                    found[way][ending].unanswered += seen.unanswered
    finally:
        for room in rooms.values():
            room.close()
    return found


def ended_router(room: Room) -> bool:
    """Whether there is none, or two."""
    children = room.supervisor().children(recursive=True)
    routers = 0
    for child in children:
        with suppress(psutil.NoSuchProcess):
            routers += "serving.router" in child.cmdline()[:3]
    return routers != 1


def rows(found: Mapping[str, Mapping[str, Seen]]) -> list[list[str]]:
    """Return the figures as lines of a table."""
    lines = []
    for ending in ENDINGS:
        pair = [found[way][ending] for way in WAYS]
        cells = [f"{statistics.median(seen.waits):.2f} ({max(seen.waits):.2f})" for seen in pair]
        ratio = statistics.median(a / b for a, b in zip(pair[0].waits, pair[1].waits, strict=True))
        lines.append([ending, *cells, f"{ratio:.2f}", *(str(seen.unanswered) for seen in pair)])
    return lines


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table, and write JSON or the documentation if requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--docs", type=Path, help="a page whose table between the marks is rewritten")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="ipnext-bench-") as place:
        found = measure(given, Path(place))
    header = ["longest wait, s: median (most)", "forked", "fresh", "ratio", "no answer, forked", "no answer, fresh"]
    table = Table(*header)
    for line in rows(found):
        table.add_row(*line)
    Console().print(table)
    if given.json:
        told = {way: {ending: vars(seen) for ending, seen in of.items()} for way, of in found.items()}
        given.json.write_text(json.dumps(told, indent=1))
    if given.docs:
        lines = [header, ["---"] * len(header), *rows(found)]
        text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        before, _, rest = given.docs.read_text().partition(BEGIN)
        given.docs.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
