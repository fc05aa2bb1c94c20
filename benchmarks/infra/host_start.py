"""What it takes to start a torch host: forked by the agent's fork server, beside a fresh interpreter.

    python -m benchmarks.infra.host_start  (--rounds 7 --hosts 4 --json out.json --docs docs/benchmarks.md)

This process stands in for the agent. In turns a host is started both ways, told to hold a small snapshot, and ended;
the baseline is the fresh interpreter of the same round. `answers` is from the start to the first answer of its HTTP
server, `serves` to the snapshot being ready. Processor time is the host's and that of what it starts, up to `serves`;
the fork server's own part of a fork is in it. Memory is the proportional set size of `--hosts` hosts with the snapshot,
and of the fork server.
"""

import argparse
import asyncio
import json
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import aclosing
from pathlib import Path

import psutil
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor, nn

from ipnext.artifacts.stores.locations import open_store
from ipnext.artifacts.upload import ingest_directory
from ipnext.components.http_sessions import HttpSessions
from ipnext.errors import Unavailable
from ipnext.infra.control import Control
from ipnext.infra.process.fork_server import ForkServer
from ipnext.infra.process.ports import LOOPBACK, PortBook
from ipnext.infra.process.spawn import Spawn, StartedProcess, fresh
from ipnext.infra.settings import AgentSettings
from ipnext.model.deployment.host_control import HostedSnapshot, HostHolds
from serving.export import export_model

POLL_SECONDS = 0.002
BEGIN, END = "<!-- host start: begin -->", "<!-- host start: end -->"
Figures = Mapping[str, float]


class Lookup(nn.Module):
    """ids [B, 4] -> score [B]."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(1000, 16)

    def forward(self, ids: Tensor) -> Tensor:
        """Return the mean of the rows."""
        mean: Tensor = self.table(ids).mean(dim=(1, 2))
        return mean


class Bench:
    """Starts hosts of one snapshot."""

    def __init__(self, place: Path, control: Control, environment: Mapping[str, str]) -> None:
        self.place, self.control, self.environment = place, control, environment
        self.ports = PortBook(place / "ports.json")
        export_model(Lookup(), {"ids": torch.zeros(2, 4, dtype=torch.int64)}, place / "lookup")
        self.store = f"file://{place}/store"
        source = ingest_directory(open_store(self.store), place / "lookup")
        held = HostedSnapshot(
            model="lookup",
            part="lookup",
            snapshot=1,
            engine="torch",
            digest=source.manifest.digest,
            uri=source.uri,
            generations=(1,),
        )
        self.holds = HostHolds(holds=(held,))

    async def start(self, spawn: Spawn, name: str) -> tuple[StartedProcess, Figures]:
        """Start a host that holds the snapshot, and measure how long it took."""
        port = self.ports.port(name)
        url = f"http://{LOOPBACK}:{port}"
        words = ["--port", str(port), "--region", "eu", "--id", name, "--artifacts", self.store]
        command = [sys.executable, "-m", "serving.host", *words, "--cache", str(self.place / "cache" / name)]
        began = time.perf_counter()
        with (self.place / "host.log").open("ab") as log:
            process = await spawn(command, self.environment, log)
        await self.until_held(url, tell=True)
        answers = time.perf_counter() - began
        await self.until_held(url, tell=False)
        return process, {
            "answers": answers,
            "serves": time.perf_counter() - began,
            "cpu": spent(psutil.Process(require_pid(process.pid))),
        }

    async def until_held(self, url: str, *, tell: bool) -> None:
        """Ask until it has taken what it is to hold, or until it is ready for it."""
        while True:
            try:
                if tell:
                    return await self.control.put_holds(url, self.holds)
                if (await self.control.host_state(url)).ready:
                    return None
            except Unavailable:
                pass
            await asyncio.sleep(POLL_SECONDS)


def require_pid(pid: int | None) -> int:
    """Return the id of a process; RuntimeError if it does not run on this machine."""
    if pid is None:
        msg = "the process has no id on this machine"
        raise RuntimeError(msg)
    return pid


def spent(process: psutil.Process) -> float:
    """Processor seconds of a process and of those below it, also those that have ended."""
    family = [process, *process.children(recursive=True)]
    return sum(sum(one.cpu_times()[: 4 if one is process else 2]) for one in family)


def pss(pids: Sequence[int]) -> float:
    """Bytes, each shared page once, of processes and of those below them."""
    family = [one for pid in pids for one in (psutil.Process(pid), *psutil.Process(pid).children(recursive=True))]
    return float(sum(one.memory_full_info().pss for one in family))


async def measure(arguments: argparse.Namespace, place: Path) -> dict[str, object]:
    """All rounds, then the memory of several hosts."""
    environment = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1"}
    server = ForkServer(
        AgentSettings().fork_server,
        log_file=place / "fork-server.log",
        environment=environment,
        settings=AgentSettings(),
    )
    server.start()
    began = time.perf_counter()
    while not server.ready:  # noqa: ASYNC110 - it tells nobody else
        await asyncio.sleep(POLL_SECONDS)
    own = psutil.Process(require_pid(server.pid))
    server_ready = {"wall": time.perf_counter() - began, "cpu": spent(own)}
    async with aclosing(HttpSessions()) as session:
        bench = Bench(place, Control(session, probe_seconds=5), environment)
        found: dict[str, list[Figures]] = {"forked": [], "fresh": []}
        memory = {}
        for number in range(arguments.rounds):
            for way, spawn in (("forked", server.spawn), ("fresh", fresh)):
                before = spent(own)
                process, figures = await bench.start(spawn, f"{way}{number}")
                found[way].append({**figures, "cpu": figures["cpu"] + spent(own) - before})
                await end(process)
        alone = pss([own.pid])
        for way, spawn in (("forked", server.spawn), ("fresh", fresh)):
            hosts = [(await bench.start(spawn, f"{way}-m{n}"))[0] for n in range(arguments.hosts)]
            memory[way] = pss([require_pid(h.pid) for h in hosts] + ([own.pid] if way == "forked" else []))
            for host in hosts:
                await end(host)
    await server.stop(5)
    medians = {way: {k: statistics.median(r[k] for r in rows) for k in rows[0]} for way, rows in found.items()}
    ratios = {
        k: statistics.median(a[k] / b[k] for a, b in zip(found["forked"], found["fresh"], strict=True))
        for k in medians["fresh"]
    }
    least = {way: {k: min(r[k] for r in rows) for k in rows[0]} for way, rows in found.items()}
    return {
        "rounds": arguments.rounds,
        "hosts": arguments.hosts,
        "fork_server": server_ready,
        "median": medians,
        "least": least,
        "ratio": ratios,
        "pss_bytes": {**memory, "server_alone": alone},
        "each": found,
    }


async def end(process: StartedProcess) -> None:
    """SIGTERM, and wait for it."""
    process.signal(signal.SIGTERM)
    await process.wait()


def rows(found: dict) -> list[list[str]]:  # type: ignore[type-arg]
    """Return the figures as lines of a table."""
    names = {"answers": "start to first answer, s", "serves": "start to serving a snapshot, s", "cpu": "processor, s"}
    lines = [
        [
            name,
            *(f"{found['median'][way][key]:.3f} ({found['least'][way][key]:.3f})" for way in ("forked", "fresh")),
            f"{found['ratio'][key]:.3f}",
        ]
        for key, name in names.items()
    ]
    forked, plain = (found["pss_bytes"][way] / 1e6 for way in ("forked", "fresh"))
    lines.append([f"memory of {found['hosts']} hosts, MB", f"{forked:.0f}", f"{plain:.0f}", f"{forked / plain:.2f}"])
    return lines


def main() -> None:
    """Print a table, and write JSON or the documentation if requested."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--hosts", type=int, default=4, help="for the memory")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--docs", type=Path, help="a page whose table between the marks is rewritten")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="ipnext-bench-") as place:
        found = asyncio.run(measure(arguments, Path(place)))
    header = ["median (least)", "forked", "fresh", "ratio"]
    table = Table(*header)
    for line in rows(found):
        table.add_row(*line)
    Console().print(table)
    Console().print({key: found[key] for key in ("fork_server", "pss_bytes")})
    if arguments.json:
        arguments.json.write_text(json.dumps(found, indent=1))
    if arguments.docs:
        lines = [header, ["---"] * 4, *rows(found)]
        text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        before, _, rest = arguments.docs.read_text().partition(BEGIN)
        arguments.docs.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
