"""One run: a platform, its users, its owners and the nemesis; the history is what remains."""

import asyncio
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

from ipnext.client import Client
from tests.nemesis.checks.checker import ENTITY, RECONCILER
from tests.nemesis.checks.spans import Span, pauses
from tests.nemesis.clients.asking import Asking
from tests.nemesis.clients.changes import Changes
from tests.nemesis.clients.load import PAUSE_SECONDS as PAUSE_OF_USERS
from tests.nemesis.clients.load import Load
from tests.nemesis.clients.people import People
from tests.nemesis.faults.injection import Nemesis
from tests.nemesis.faults.schedule import PLACES, Fault, few, schedule
from tests.nemesis.history import Recorder, read_history
from tests.nemesis.models import BASE_DEMAND, DIPS, JUDGED, PARTS, REPLICA_QPS, UNITS, Forge, fleet
from tests.nemesis.observation.dump import store_dump, temporal_dump
from tests.nemesis.observation.watch import Watch
from tests.nemesis.stack import Stack
from tests.waiting import PATIENCE_SECONDS, until

REST_SECONDS = 2.0
"""How long users are watched once nothing changes any more."""
PAUSE_SECONDS = 0.5


@dataclass(frozen=True)
class Arguments:
    """How a run goes. With `places` the worker is killed at each of them once, instead of the drawn schedule."""

    directory: Path
    seed: int
    seconds: float
    kinds: tuple[str, ...]
    places: tuple[str, ...] = ()
    each: int = 0
    """Where not 0: so many short faults of each kind, instead of faults for so many seconds."""
    models: tuple[str, ...] = tuple(PARTS)
    pause: float = PAUSE_OF_USERS
    """Seconds of each user between two requests."""

    @property
    def parts(self) -> Mapping[str, tuple[str, ...]]:
        """Model -> its parts."""
        return {model: PARTS[model] for model in self.models}

    @property
    def schedule(self) -> Iterable[Fault]:
        """What is drawn from the seed."""
        return few(self.seed, self.kinds, self.each) if self.each else schedule(self.seed, self.kinds)

    @property
    def refresh(self) -> str:
        """How `solo` gets new snapshots: into its running processes, with an even seed into new ones."""
        return "in_place" if self.seed % 2 else "replace"


def run(arguments: Arguments, tell: Callable[[str], None] = lambda _: None) -> Path:
    """Run it; the path of its history. `tell` hears what happens."""
    arguments.directory.mkdir(parents=True, exist_ok=True)
    recorder = Recorder(arguments.directory / "history.jsonl")
    stack = Stack(arguments.directory / "state", PLACES)
    recorder.note(
        "begin",
        seed=arguments.seed,
        seconds=arguments.seconds,
        kinds=list(arguments.kinds),
        parts={model: list(parts) for model, parts in arguments.parts.items()},
        demand=BASE_DEMAND,
        units=UNITS,
        qps=REPLICA_QPS,
        dips=dict(DIPS),
    )
    tell("starting the platform")
    stack.start()
    watch = Watch(recorder, stack, arguments.parts)
    try:
        _live(arguments, recorder, stack, watch, tell)
    finally:
        watch.note_processes()
        status = stack.stop()
        recorder.note("ended", left_over=watch.left_over(), status=status)
        recorder.close()
    return recorder.path


def _live(arguments: Arguments, recorder: Recorder, stack: Stack, watch: Watch, tell: Callable[[str], None]) -> None:
    forge = Forge(arguments.directory / "snapshots")
    asking = Asking(recorder, stack.endpoints["api"])
    changes = Changes(asking, forge, arguments.parts, refresh=arguments.refresh)
    people = People(asking, changes, arguments.seed)
    with ExitStack() as all_of_it:
        all_of_it.callback(asking.close)
        all_of_it.callback(changes.close)
        all_of_it.callback(people.leave)
        client = all_of_it.enter_context(Client(stack.endpoints["api"]))
        client.apply(fleet())
        for model in arguments.models:
            client.apply(changes.manifest(model))
        tell("publishing the first generation")
        people.arrive()
        _settled(client, changes)
        all_of_it.enter_context(watch)
        load = all_of_it.enter_context(
            Load(recorder, dict(stack.endpoints["gateways"]), arguments.models, arguments.seed, arguments.pause)
        )

        def whole_since(at: float) -> bool:
            return load.whole_since(at) and watch.whole_since(at)

        begun = time.monotonic()
        until(lambda: whole_since(begun))
        changes.judged = True
        if JUDGED in arguments.models:
            client.apply(changes.manifest(JUDGED))
            until(lambda: _rest(client))
        nemesis = Nemesis(recorder, stack, whole_since)
        with people:
            _strike_all(arguments, nemesis, tell)
        tell("waiting until every change has ended")
        _settled(client, changes)
        calm = time.monotonic()
        with _patiently():
            until(lambda: whole_since(calm))
        recorder.note("quiet")
        time.sleep(REST_SECONDS)
    tell("reading what the store and Temporal say")
    workflows = _workflows(stack, pauses(read_history(recorder.path)))
    recorder.note("dump", workflows=workflows, **store_dump(stack.state))


def _strike_all(arguments: Arguments, nemesis: Nemesis, tell: Callable[[str], None]) -> None:
    if arguments.places:
        if not nemesis.strike_each(arguments.places, PAUSE_SECONDS, tell):
            tell("not healed: no more faults")
        return
    deadline = time.monotonic() + arguments.seconds
    for fault in arguments.schedule:
        time.sleep(PAUSE_SECONDS)
        if not arguments.each and time.monotonic() > deadline:
            return
        where = f" in {fault.region}" if fault.region else ""
        how = f" for {fault.seconds:g} s" if fault.seconds else ""
        tell(f"{fault.kind} of {fault.role}{where}{how}{f' ({fault.cut})' if fault.cut else ''}")
        if not nemesis.strike(fault):
            tell("not healed: no more faults")
            return


def _settled(client: Client, changes: Changes) -> None:
    """Publish all parts of every model, and wait until every change and replan has ended."""
    for model, parts in changes.parts.items():
        changes.publish("settler", model, parts)
    with _patiently():
        until(lambda: _rest(client))
        until(lambda: all(replan.state.final for replan in client.replans(limit=100)))
        until(lambda: _rest(client))


def _rest(client: Client) -> bool:
    """Whether every change of every model has ended; of a retired one, that it is gone."""
    models = client.models()
    return all(change.state.final for model in models for change in client.changes(model.manifest.name, limit=1000))


@contextmanager
def _patiently() -> Iterator[None]:
    """A run that does not come to rest is for the checker to tell, with the whole history in hand."""
    try:
        yield
    except AssertionError:
        return


def _workflows(stack: Stack, looked_at: Sequence[Span]) -> list[dict[str, object]]:
    """Once no run but the entities' is open, or after a while as it is: visibility lags behind."""
    deadline = time.monotonic() + PATIENCE_SECONDS
    while True:
        found = asyncio.run(temporal_dump(stack.endpoints["temporal_address"], looked_at))
        running = [run for run in found if run["status"] == "RUNNING" and run["type"] not in {ENTITY, RECONCILER}]
        if not running or time.monotonic() > deadline:
            return found
        time.sleep(0.5)
