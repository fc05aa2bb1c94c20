"""What new route tables of many models cost one region: a real agent with its Envoy and its router.

    python -m benchmarks.infra.gateway_tables  (--routed 450 3000 --changed 450 --pushes 16 64 --rounds 3
                                              --former DIRECTORY --former-changed 30 --json out.json)

The region routes `routed` models, half of their users here and half to a region `lost`; no host runs, since a table
is confirmed without one. Then `changed` of the models get a table that keeps all users here, `pushes` at a time, as a
failover sends them. Wall time until the first and until the last table is confirmed, and CPU time of the processes.

The baseline is another build, of the checkout at `--former`, in turns with this one. It may get fewer tables; the
ratios are those of one table. Without it, the baseline is the first 20 of the tables, one after another: each is
written alone.
"""

import argparse
import itertools
import json
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, suppress
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.environments import ROOT
from ipnext.errors import Unavailable
from ipnext.infra.local_agents import LocalProcessInfrastructure
from ipnext.infra.process.ports import PortBook
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.registry.registry import Signature, TensorSpec, single_part_graph

HERE, LOST = "here", "lost"
TENSOR = TensorSpec(name="x", datatype="FP32", shape=(-1, 4))
GRAPH = single_part_graph("part", Signature(inputs=(TENSOR,), outputs=(TENSOR.model_copy(update={"name": "y"}),)))
SERVED = tuple(ServedGeneration(generation=number, graph=GRAPH, snapshots={"part": number}) for number in (1, 2))
PROGRAMS = ("agent", "envoy", "router")
HEADS = ("way", "tables", "writes", "first, wall", "all, wall", *(f"{program}, CPU" for program in PROGRAMS))
ALONE = 20
"""Tables of the baseline that are pushed one after another."""
STARTS_WITHIN_SECONDS = 300.0
QUIET_SECONDS = 1.0


class OneRegion:
    """A running agent of one build, and its processes."""

    def __init__(self, build: Path, place: Path, routed: int) -> None:
        self.names = [f"m{number:05}" for number in range(routed)]
        self._revision = 1
        self._state = place / "state"
        self._write(place / "peers.json", json.dumps({LOST: "http://127.0.0.1:9"}))
        for model in self.names:
            table = self.table(model, moved=False)
            self._write(self._state / "wanted" / "routes" / f"{model}.json", table.model_dump_json())
        port = PortBook(place / "ports.json").port("agent")
        self.infra = LocalProcessInfrastructure({HERE: f"http://127.0.0.1:{port}"}, timeout_seconds=120)
        self._process = self._start(build, place, port)
        self._await()
        self.push(self.names[:1], 1, moved=False)  # the router has started as well

    @staticmethod
    def _write(path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def _start(self, build: Path, place: Path, port: int) -> subprocess.Popen[bytes]:
        command = [sys.executable, "-m", "ipnext.infra.agent", "--region", HERE, "--state", str(self._state)]
        command += ["--port", str(port), "--gateway-port", "0", "--artifacts", f"file://{place}"]
        command += ["--peers", str(place / "peers.json"), "--owner", str(os.getpid())]
        settings = {"IPNEXT_COMPONENT_AUTHENTICATION": "none", "IPNEXT_AGENT_CONFIRM_SECONDS": "120"}
        environment = {**os.environ, "PYTHONPATH": str(build), **settings}
        with (place / "agent.log").open("ab") as log:
            return subprocess.Popen(command, env=environment, cwd=build, stdout=log, stderr=log)

    def _await(self) -> None:
        """Return once the gateway has applied all tables."""
        deadline = time.monotonic() + STARTS_WITHIN_SECONDS
        while time.monotonic() < deadline and self._process.poll() is None:
            with suppress(Unavailable):
                if len(self.infra.observe(HERE).routes) == len(self.names):
                    return
            time.sleep(0.2)
        msg = f"the agent did not start; see {self._state.parent / 'agent.log'}"
        raise SystemExit(msg)

    def table(self, model: str, *, moved: bool) -> RouteTable:
        """Return the next table of a model: half of its users in each region, or all here."""
        targets = (HERE,) if moved else (HERE, LOST)
        shares = tuple(RouteShare(to=to, generation=2, fraction=1 / len(targets)) for to in targets)
        return RouteTable(model=model, region=HERE, revision=self._revision, shares=shares, served=SERVED)

    def push(self, models: Sequence[str], pushes: int, *, moved: bool) -> dict[str, float]:
        """Push a new table of each of these models; return wall and CPU seconds."""
        self._revision += 1
        tables = [self.table(model, moved=moved) for model in models]
        confirmed: list[float] = []

        def one(table: RouteTable) -> None:
            self.infra.route(table)
            confirmed.append(time.perf_counter())

        written, before, began = self._version(), self._cpu(), time.perf_counter()
        with ThreadPoolExecutor(pushes) as pool:
            list(pool.map(one, tables))
        wall = {"first": min(confirmed) - began, "all": max(confirmed) - began}
        wall |= {"tables": len(tables), "writes": self._version() - written}
        return wall | {program: seconds - before[program] for program, seconds in self._cpu().items()}

    def _version(self) -> int:
        """Return the version of the gateway's configuration: each write has one."""
        with (self._state / "envoy" / "routes.json").open() as file:
            return int(re.search(r'"version_info": ?"(\d+)"', file.read(100))[1])  # type: ignore[index]

    def _cpu(self) -> dict[str, float]:
        """Return the CPU seconds of each program so far."""
        agent = psutil.Process(self._process.pid)
        found = dict.fromkeys(PROGRAMS, 0.0) | {"agent": _seconds(agent)}
        supervisor = psutil.Process(json.loads((self._state / "supervisor.json").read_text())["pid"])
        for process in supervisor.children(recursive=True):
            line = " ".join(process.cmdline())
            program = next((name for name in PROGRAMS[1:] if name in line.split(" --")[0]), None)
            if program:
                found[program] += _seconds(process)
        return found

    def close(self) -> None:
        """End the agent and all that it started."""
        for _ in range(2):
            self._process.send_signal(signal.SIGTERM)
            time.sleep(0.5)
        self._process.wait(60)


def _seconds(process: psutil.Process) -> float:
    times = process.cpu_times()
    return float(times.user + times.system)


@contextmanager
def regions(builds: Mapping[str, Path], routed: int) -> Iterator[dict[str, OneRegion]]:
    """Run one region of each build."""
    with tempfile.TemporaryDirectory(prefix="ipnext-bench-") as place:
        found: dict[str, OneRegion] = {}
        try:
            for name, build in builds.items():
                found[name] = OneRegion(build, Path(place) / name, routed)
            yield found
        finally:
            for region in found.values():
                region.close()


def measure(given: argparse.Namespace, routed: int) -> dict[str, list[dict[str, float]]]:
    """Push the tables of each build in turns, for each number of pushes at a time."""
    builds = {"now": ROOT} | ({"former": given.former.resolve()} if given.former else {})
    found: dict[str, list[dict[str, float]]] = {}
    with regions(builds, routed) as running:
        for (_, pushes), (name, region) in itertools.product(
            itertools.product(range(given.rounds), given.pushes), running.items()
        ):
            models = region.names[: given.former_changed if name == "former" else given.changed]
            time.sleep(QUIET_SECONDS)
            found.setdefault(f"{name}, {pushes} at a time", []).append(region.push(models, pushes, moved=True))
            region.push(models, pushes, moved=False)
            if not given.former:
                alone = region.push(models[:ALONE], 1, moved=True)
                found.setdefault(f"{ALONE} alone", []).append(alone)
                region.push(models[:ALONE], pushes, moved=False)
    return found


def shown(found: Mapping[str, Sequence[Mapping[str, float]]], routed: int) -> Table:
    """Return one line for each way, medians of the rounds."""
    table = Table(title=f"{routed:,} routed models: seconds, median")
    for head in HEADS:
        table.add_column(head, justify="left" if head == "way" else "right")
    for way, rounds in found.items():
        counts = [f"{statistics.median(each[key] for each in rounds):.0f}" for key in ("tables", "writes")]
        seconds = [_median(rounds, (key,)) for key in ("first", "all", *PROGRAMS)]
        table.add_row(way, *counts, *(f"{one:.2f}" for one in seconds))
    return table


def ratios(found: Mapping[str, Sequence[Mapping[str, float]]], pushes: Sequence[int]) -> Iterator[str]:
    """Yield former / now, for wall and CPU time of one table."""
    for number in pushes:
        now, former = (found.get(f"{name}, {number} at a time") for name in ("now", "former"))
        if now and former:
            wall, cpu = (_per_table(former, keys) / _per_table(now, keys) for keys in (("all",), PROGRAMS))
            yield f"{number} at a time, by table: former / now {wall:.1f} in wall time, {cpu:.1f} in CPU time"


def _median(rounds: Sequence[Mapping[str, float]], keys: Sequence[str]) -> float:
    return statistics.median(sum(each[key] for key in keys) for each in rounds)


def _per_table(rounds: Sequence[Mapping[str, float]], keys: Sequence[str]) -> float:
    return _median([{key: each[key] / each["tables"] for key in keys} for each in rounds], keys)


def main() -> None:
    """Measure each number of routed models."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--routed", type=int, nargs="+", default=[450, 3_000])
    parser.add_argument("--changed", type=int, default=450)
    parser.add_argument("--pushes", type=int, nargs="+", default=[16, 64])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--former", type=Path, help="checkout of another build, the baseline")
    parser.add_argument("--former-changed", type=int, default=30)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    console, results = Console(width=120), {}
    for routed in given.routed:
        results[routed] = measure(given, routed)
        console.print(shown(results[routed], routed))
        for line in ratios(results[routed], given.pushes):
            console.print(line)
    if given.json:
        given.json.write_text(json.dumps(results, indent=1))


if __name__ == "__main__":
    main()
