"""How soon rollouts go on after kill -9 of a worker, of all workers, or of the Temporal server.

    python -m benchmarks.lifecycle.recovery  (--kills 8 --models 3 --workers 2 --json out.json)

The embedded platform, which restarts what dies. Some models are rolled out without a pause, in small steps; one more
rests. Three waits from each kill, read from the histories of the models' runs afterwards, each the longest over the
models:

    begun again    until a worker has begun or ended an activity, or decided something, of the model that took longest
    next decision  until a worker has completed a workflow task of the model that took longest: a server that is away
                   can write none, so this one shows that it is back, and the workers with it
    word answered  until the resting model has acknowledged a pause or a resume that is asked for right after the kill

The baseline is the same waits from moments without a kill, in the same run. Every acknowledged publish has to end
`done` or `superseded`.
"""

import argparse
import asyncio
import json
import os
import random
import signal
import statistics
import tempfile
import threading
import time
from bisect import bisect_right
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table
from temporalio.api.enums.v1 import EventType
from temporalio.client import Client as Temporal
from temporalio.service import RPCError

from benchmarks.lifecycle import manifest, snapshots
from benchmarks.lifecycle.publishing import publish_for_ever
from demo.embedded import Embedded
from ipnext import names
from ipnext.client import Client
from ipnext.errors import IPnextError
from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.temporal import connect

SETTLE_SECONDS = 11.0
"""Between two kills, so that each finds a platform at work."""

LONGEST_SECONDS = 60.0
RESTING = "resting"
DECIDED = frozenset({EventType.EVENT_TYPE_WORKFLOW_TASK_COMPLETED})
BEGUN = DECIDED | {EventType.EVENT_TYPE_ACTIVITY_TASK_STARTED, EventType.EVENT_TYPE_ACTIVITY_TASK_COMPLETED}
VICTIMS: Mapping[str, tuple[str, bool]] = {
    "a worker": ("workflows.worker", False),
    "all workers": ("workflows.worker", True),
    "Temporal": ("start-dev", True),
}
"""Name -> word of the command, and whether all such processes are killed or one of them."""

NOTHING = "baseline: nothing"


@dataclass
class Moment:
    """A kill, or a moment without one: seconds since 1970, and how long the resting model took to answer."""

    what: str
    at: float
    word_seconds: float = 0.0


@dataclass
class Waits:
    """Seconds, one for each moment."""

    begun: list[float] = field(default_factory=list)
    decided: list[float] = field(default_factory=list)
    word: list[float] = field(default_factory=list)


def kill(platform: int, what: str, draw: random.Random) -> None:
    """SIGKILL for the children of `ipnext dev` that are meant."""
    word, everyone = VICTIMS[what]
    children = psutil.Process(platform).children(recursive=False)
    found = [child for child in children if word in " ".join(child.cmdline())]
    for victim in found if everyone else [draw.choice(found)]:
        os.kill(victim.pid, signal.SIGKILL)


def word_answered(client: Client, number: int) -> float:
    """Seconds until the resting model's entity has acknowledged a word, asked again as long as the API refuses it."""
    began = time.monotonic()
    while time.monotonic() - began < LONGEST_SECONDS:
        try:
            (client.resume if number % 2 else client.pause)(RESTING)
        except IPnextError:
            time.sleep(0.02)
        else:
            return time.monotonic() - began
    return float("inf")


def moments(platform: int, client: Client, kills: int) -> list[Moment]:
    """Kill one after the other, in turns."""
    draw, found = random.Random(1), list[Moment]()
    for _ in range(kills):
        for what in (NOTHING, *VICTIMS):
            time.sleep(SETTLE_SECONDS + draw.random())
            if what in VICTIMS:
                kill(platform, what, draw)
            found.append(Moment(what, time.time()))
            found[-1].word_seconds = word_answered(client, len(found) - 1)
    time.sleep(SETTLE_SECONDS)
    return found


async def event_times(temporal: Temporal, runs: Iterable[str], kinds: frozenset[int]) -> list[float]:
    """When the runs' histories have events of some kinds, ascending. A change that ended early has no transition."""
    found = []
    for run in runs:
        try:
            history = await temporal.get_workflow_handle(run).fetch_history()
        except RPCError:
            continue
        found += [event.event_time.ToMilliseconds() / 1000 for event in history.events if event.event_type in kinds]
    return sorted(found)


async def read(address: str, ids: Mapping[str, Sequence[str]], kills: Sequence[Moment]) -> dict[str, Waits]:
    """Return the waits of each kind of moment, from the histories of all runs."""
    temporal = await connect(address=address)
    runs = {
        model: [run for i in of for run in (names.lifecycle_workflow_id(model, i), names.transition_workflow_id(i))]
        for model, of in ids.items()
    }
    begun = [await event_times(temporal, of, BEGUN) for of in runs.values()]
    decided = [await event_times(temporal, of, DECIDED) for of in runs.values()]
    waits: dict[str, Waits] = {}
    for moment in kills:
        of = waits.setdefault(moment.what, Waits())
        of.begun.append(max(first_after(times, moment.at) for times in begun))
        of.decided.append(max(first_after(times, moment.at) for times in decided))
        of.word.append(moment.word_seconds)
    return waits


def first_after(times: Sequence[float], moment: float) -> float:
    """Seconds from a moment until the next of some ascending times."""
    place = bisect_right(times, moment)
    return times[place] - moment if place < len(times) else float("inf")


def run(place: Path, models: int, kills: int) -> tuple[dict[str, Waits], list[ChangeState]]:
    """Publish while workers are killed, and return the waits and the final states of all publishes."""
    with Embedded(place / "state") as platform:
        client, stop = Client(platform.endpoints["api"]), threading.Event()
        sources = snapshots(place / "snapshots", 20)
        ids: dict[str, list[str]] = {f"m{number}": [] for number in range(models)}
        for name in (*ids, RESTING):
            client.apply(manifest(name, canary=0.1, maxStep=0.1, holdSeconds=0))
        client.wait_change(client.publish(RESTING, {"dense": sources[0]}).id, timeout_seconds=120)
        threads = [
            threading.Thread(target=publish_for_ever, args=(client, name, sources, stop, of))
            for name, of in ids.items()
        ]
        for thread in threads:
            thread.start()
        time.sleep(15)
        found = moments(platform.endpoints["pid"], client, kills)
        stop.set()
        for thread in threads:
            thread.join()
        ends = [client.wait_change(change_id, timeout_seconds=120).state for of in ids.values() for change_id in of]
        return asyncio.run(read(platform.endpoints["temporal_address"], ids, found)), ends


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kills", type=int, default=8)
    parser.add_argument("--models", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    os.environ["IPNEXT_DEV_WORKERS"] = str(given.workers)
    with tempfile.TemporaryDirectory() as place:
        waits, ends = run(Path(place), given.models, given.kills)
    shown = Table(
        title=f"{given.workers} workers, {given.kills} times each; median (most) of the slowest model, seconds"
    )
    for column in ("killed", "begun again", "next decision", "word answered"):
        shown.add_column(column, justify="left" if column == "killed" else "right")
    for what, of in waits.items():
        columns = (of.begun, of.decided, of.word)
        shown.add_row(what, *(f"{statistics.median(seconds):.2f} ({max(seconds):.2f})" for seconds in columns))
    Console().print(shown)
    print(f"{len(ends)} publishes: " + ", ".join(f"{ends.count(s)} {s.value}" for s in dict.fromkeys(ends)))
    if given.json:
        given.json.write_text(json.dumps({what: vars(of) for what, of in waits.items()}, indent=2))


if __name__ == "__main__":
    main()
