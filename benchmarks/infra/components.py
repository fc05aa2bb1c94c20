"""What Unix sockets between the components of a region cost a prediction, over loopback ports without authentication.

    python -m benchmarks.infra.components  (--rounds 30 --seconds 0.5 --json out.json)

Two agents with Envoy, router and one torch host each, asked by one client in turns through their gateways; one is as it
is by default, the other's router and host listen on loopback ports. CPU is that of Envoy, router and host together, by
request.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import httpx
import psutil
from rich.console import Console
from rich.table import Table

from benchmarks.infra.router_end import BODY, Room
from ipnext.infra.settings import HOST_COMMAND, ROUTER_COMMAND

PROGRAMS = ("envoy", "serving.router", "serving.host")
WARM_UP_SECONDS = 2.0


def on_ports(command: Sequence[str]) -> str:
    """Return a command whose program listens on a loopback port, as a setting."""
    return json.dumps([word.replace("{sockets}", "{port}").replace("--sockets", "--port") for word in command])


WAYS: Mapping[str, Mapping[str, str]] = {
    "ports": {
        "IPNEXT_AGENT_HOST_COMMAND": on_ports(HOST_COMMAND),
        "IPNEXT_AGENT_ROUTER_COMMAND": on_ports(ROUTER_COMMAND),
    },
    "sockets": {},
}


@dataclass
class Turns:
    """What was measured of one way, by turn."""

    p50: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


class Asked:
    """A region, and a client that keeps its connection."""

    def __init__(self, room: Room) -> None:
        self._url = room.url
        self._client = httpx.Client(trust_env=False, timeout=60)
        self._processes = [p for p in room.supervisor().children(recursive=True) if _program(p)]

    def turn(self, seconds: float) -> tuple[float, float]:
        """Ask for so long; the median, and CPU for one request, both in microseconds."""
        waits: list[float] = []
        cpu, ended = self._cpu(), time.perf_counter() + seconds
        while (began := time.perf_counter()) < ended:
            self._client.post(self._url, json=BODY).raise_for_status()
            waits.append(time.perf_counter() - began)
        return statistics.median(waits) * 1e6, (self._cpu() - cpu) / len(waits) * 1e6

    def close(self) -> None:
        """End the connection."""
        self._client.close()

    def _cpu(self) -> float:
        times = [process.cpu_times() for process in self._processes]
        return sum(one.user + one.system for one in times)


def _program(process: psutil.Process) -> bool:
    with suppress(psutil.NoSuchProcess):
        words = process.cmdline()
        return Path(words[0]).name == "envoy" or any(word in PROGRAMS for word in words[:3])
    return False


def measure(rounds: int, seconds: float, place: Path) -> Mapping[str, Turns]:
    """Way -> its turns; the ways take turns, each as the first one in every other round."""
    rooms = {way: Room(place / way, environment) for way, environment in WAYS.items()}
    found = {way: Turns() for way in WAYS}
    try:
        for room in rooms.values():
            room.serve()
        asked = {way: Asked(room) for way, room in rooms.items()}
        for one in asked.values():
            one.turn(WARM_UP_SECONDS)
        for number in range(rounds):
            for way in list(WAYS)[:: 1 if number % 2 else -1]:
                p50, cpu = asked[way].turn(seconds)
                found[way].p50.append(p50)
                found[way].cpu.append(cpu)
        for one in asked.values():
            one.close()
    finally:
        for room in rooms.values():
            room.close()
    return found


def ratio(found: Mapping[str, Turns], figure: str) -> float:
    """Return the median, over the rounds, of sockets over ports."""
    pairs = zip(getattr(found["sockets"], figure), getattr(found["ports"], figure), strict=True)
    return float(statistics.median(ours / theirs for ours, theirs in pairs))


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table, and write JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    parser.add_argument("--seconds", type=float, default=0.5)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="ipnext-bench-") as place:
        found = measure(given.rounds, given.seconds, Path(place))
    table = Table("median of the turns, us", *WAYS, "sockets / ports")
    for figure in ("p50", "cpu"):
        cells = [f"{statistics.median(getattr(found[way], figure)):.0f}" for way in WAYS]
        table.add_row(figure, *cells, f"{ratio(found, figure):.3f}")
    Console().print(table)
    if given.json:
        given.json.write_text(json.dumps({way: vars(turns) for way, turns in found.items()}))


if __name__ == "__main__":
    main()
