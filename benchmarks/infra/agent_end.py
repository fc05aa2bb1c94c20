"""What clients see when a region's agent is killed, and when its supervisor is, which takes the whole region along.

    python -m benchmarks.infra.agent_end  (--rounds 7 --clients 3 --json out.json --docs docs/benchmarks.md)

One agent with Envoy and one torch host, asked by as many clients. `agent leaves` is SIGTERM with
`IPNEXT_AGENT_SIGTERM=leave`, `agent killed` is SIGKILL; another agent is started 0.5 s after either. `wait` is the
longest time from asking to an answer 200 in a round, `no answer` all that were answered otherwise, `adopted` the time
from the start of the next agent, or from the end of the supervisor, until the agent reports a host that answers. The
baseline is the same clients while nothing ends.
"""

import argparse
import json
import os
import signal
import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

from rich.console import Console
from rich.table import Table

from benchmarks.infra.router_end import SETTLED_SECONDS, Room, asked
from ipnext.errors import Unavailable

BEGIN, END = "<!-- agent end: begin -->", "<!-- agent end: end -->"
ENDINGS = ("nothing ends", "agent leaves", "agent killed", "supervisor killed")
AWAY_SECONDS = 0.5
"""From the end of an agent to the start of the next one; `ipnext dev` starts it within 0.2 s."""
HEADER = ["", "longest wait, s: median (most)", "no answer", "answers", "adopted, s: median (most)", "other pids after"]


@dataclass
class Figures:
    """All rounds of one ending."""

    waits: list[float] = field(default_factory=list)
    unanswered: int = 0
    answered: int = 0
    adopted: list[float] = field(default_factory=list)
    others: int = 0
    """Processes of the region that were not there before."""


def end(room: Room, ending: str) -> float | None:
    """Let it end; the seconds until the next agent reports its region, if there is one."""
    if ending == "nothing ends":
        return None
    if ending == "supervisor killed":
        former = room.supervisor().pid
        began = time.perf_counter()
        os.kill(former, signal.SIGKILL)
        while room.supervisor().pid == former or not serves(room):
            time.sleep(0.01)
        return time.perf_counter() - began
    room.process.send_signal(signal.SIGTERM if ending == "agent leaves" else signal.SIGKILL)
    room.process.wait()
    time.sleep(AWAY_SECONDS)
    began = time.perf_counter()
    room.start()
    while not serves(room):
        time.sleep(0.01)
    return time.perf_counter() - began


def serves(room: Room) -> bool:
    """Whether the agent reports a host that answers."""
    with suppress(Unavailable):
        return any(1 in replica.ready for replica in room.infra.observe("here").replicas)
    return False


def measure(arguments: argparse.Namespace, place: Path) -> dict[str, Figures]:
    """Every ending in turns."""
    room, found = Room(place / "room", {"IPNEXT_AGENT_SIGTERM": "leave"}), {ending: Figures() for ending in ENDINGS}
    try:
        room.serve()
        url = room.url
        for _ in range(arguments.rounds):
            for ending, figures in found.items():
                before = room.pids()
                with asked(url, arguments.clients) as seen:
                    seconds = end(room, ending)
                    time.sleep(SETTLED_SECONDS)
                figures.waits.append(max(seen.waits))
                figures.unanswered += seen.unanswered
                figures.answered += len(seen.waits)
                figures.adopted += [] if seconds is None else [seconds]
                figures.others += len(room.pids() - before)
    finally:
        room.close()
    return found


def rows(found: Mapping[str, Figures]) -> list[list[str]]:
    """Return the figures as lines of a table."""
    return [
        [ending, _spread(one.waits), str(one.unanswered), str(one.answered), _spread(one.adopted), str(one.others)]
        for ending, one in found.items()
    ]


def _spread(seconds: Sequence[float]) -> str:
    return f"{statistics.median(seconds):.2f} ({max(seconds):.2f})" if seconds else "-"


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table, and write JSON or the documentation if asked."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--clients", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--docs", type=Path, help="a page whose table between the marks is written again")
    given = parser.parse_args(arguments)
    with tempfile.TemporaryDirectory(prefix="ipnext-bench-") as place:
        found = measure(given, Path(place))
    table = Table(*HEADER)
    for line in rows(found):
        table.add_row(*line)
    Console().print(table)
    if given.json:
        given.json.write_text(json.dumps({ending: vars(one) for ending, one in found.items()}, indent=1))
    if given.docs:
        lines = [HEADER, ["---"] * len(HEADER), *rows(found)]
        text = "\n".join("| " + " | ".join(line) + " |" for line in lines)
        before, _, rest = given.docs.read_text().partition(BEGIN)
        given.docs.write_text(f"{before}{BEGIN}\n{text}\n{END}{rest.partition(END)[2]}")


if __name__ == "__main__":
    main()
