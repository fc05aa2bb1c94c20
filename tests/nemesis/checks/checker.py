"""The checker: reads a history and says which promises were broken. Pure; each rule is a function of the story."""

import struct
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import pairwise

from tests.nemesis.checks.requests import bad_generations, drained, frozen, paused, unplaceable
from tests.nemesis.checks.spans import Drained
from tests.nemesis.checks.story import FINAL, PLACING, REPAIR_SECONDS, Asked, Story
from tests.nemesis.history import Event
from tests.nemesis.observation.capacity_floor import shortfalls

OVERTAKEN_BY = {"publish": {"publish", "rollback", "retire"}, "apply": {"publish", "apply", "rollback", "retire"}}
"""Kind -> kinds of newer changes that make it pointless (docs/lifecycle.md, Order)."""
FAILED_RUNS = frozenset({"FAILED", "TIMED_OUT", "TERMINATED"})
ENTITY = "model"
RECONCILER = "reconcile"


@dataclass(frozen=True)
class Violation:
    """A promise that was broken, and how."""

    rule: str
    message: str

    def __str__(self) -> str:
        return f"{self.rule}: {self.message}"


Rule = Callable[[Story], Iterable[str]]


def lost_publishes(story: Story) -> Iterable[str]:
    """An acknowledged change is one change, holds what was published, and ends."""
    for event in (e for f in ("publish", "rollback", "apply", "retire") for e in story.acknowledged(f)):
        change_id = event.value.get("change") or event.value.get("id")
        if change_id is None:  # an apply that changed nothing
            continue
        changes = story.changes[event.value["model"]]
        found = [change for change in changes if change.id == change_id]
        if len(found) != 1:
            yield f"{event.f} {change_id} was acknowledged and is recorded {len(found)} times"
            continue
        (change,) = found
        if change.state not in FINAL:
            yield f"{event.f} {change_id} was acknowledged and never ended: {change.state}"
        if event.value["sequence"] != change.sequence:
            yield f"{event.f} {change_id} was acknowledged as {event.value['sequence']}, recorded as {change.sequence}"
        if change.state == "superseded":
            newer = {other.kind for other in changes if other.sequence > change.sequence}
            if not newer & OVERTAKEN_BY.get(change.kind, newer):
                yield f"{event.f} {change_id} is superseded, and nothing newer was asked: {change.message}"
        if event.f == "publish":
            yield from _wrong_content(story, event)


def _wrong_content(story: Story, event: Event) -> Iterable[str]:
    told, generation = story.dump["models"][event.value["model"]], event.value["generation"]
    snapshots = told["generations"].get(str(generation), {})
    for part, (digest, _) in event.value["parts"].items():
        if told["digests"].get(f"{part}/{snapshots.get(part)}") != digest:
            yield f"publish {event.value['change']}: generation {generation} does not hold what was published of {part}"


def mixed_answers(story: Story) -> Iterable[str]:
    """The data of an answer are those of the one generation that it names, to the bit, and so is its proof."""
    for asked in story.answers:
        said = asked.end.value
        marks = story.expected_marks(asked.model, said["generation"])
        if marks is None:
            yield f"{_place(asked)}: generation {said['generation']} is not known"
            continue
        snapshots = story.dump["models"][asked.model]["generations"][str(said["generation"])]
        if said["marks"] != marks or said["sum"] != _sum(asked.begin.value["x"], marks[0]):
            yield (
                f"{_place(asked)}: marks {said['marks']} and sum {said['sum']}, "
                f"generation {said['generation']} has {marks}"
            )
        if {part: int(number) for part, number in said["snapshots"].items()} != snapshots:
            yield f"{_place(asked)}: proof {said['snapshots']}, generation {said['generation']} is {snapshots}"


def _sum(x: float, mark: float) -> float:
    """x + mark in 32 bits, as the model adds them."""
    return float(struct.unpack("f", struct.pack("f", x + mark))[0])


def unvalidated_answers(story: Story) -> Iterable[str]:
    """Nothing answers that validation has not passed."""
    for model, told in story.dump["models"].items():
        passed = set(told["validated"])
        used = {asked.end.value["generation"] for asked in story.answers if asked.model == model}
        for generation in sorted(used - passed):
            yield f"{model}: generation {generation} answered and never passed validation"


def order(story: Story) -> Iterable[str]:
    """What serves goes back by a rollback only, and only what serves or is being brought answers."""
    for model, changes in story.changes.items():
        newest = 0
        done = [c for c in changes if c.state == "done" and c.finished is not None and c.generation is not None]
        for change in sorted(done, key=lambda change: change.finished or 0.0):
            if change.kind not in {"rollback", "move"} and change.generation < newest:
                yield f"{model}: {change.kind} {change.id} went from generation {newest} back to {change.generation}"
            newest = change.generation if change.kind != "move" else newest
    for asked in story.answers:
        if story.lost(asked.region, asked.begin.at, asked.end.at):  # it answers with what it held
            continue
        allowed = story.allowed(asked.model, asked.begin.wall, asked.end.wall)
        answered = asked.end.value["generation"]
        if answered not in allowed and answered not in story.left(asked.model, asked.begin.wall, asked.end.wall):
            yield f"{_place(asked)}: generation {answered} answered, expected one of {sorted(allowed)}"


def capacity_floor(story: Story) -> Iterable[str]:
    """Each generation has ready what is sent to it, but in a region whose data plane has a fault at that moment.

    A region that is lost and lives on sends its users where it last did, which nobody can tell it otherwise.
    """
    for event in story.samples:
        faulty = {w.fault["region"] for w in story.windows if w.touches_data and w.covers(event.at - 1.0, event.at)}
        told = {r: found for r, found in event.value["tables"].items() if not story.lost(r, event.at - 1.0, event.at)}
        found = shortfalls(
            {**event.value, "tables": told},
            story.meta["parts"],
            lambda model, at=event.wall: story.demand(model, at),
            story.meta["qps"],
        )
        yield from (
            f"at {event.at:.2f}: {short}"
            for short in found
            if short.region not in faulty and not unrepaired(story, short.model, event)
        )


def unrepaired(story: Story, model: str, event: Event) -> bool:
    """Whether a disaster may still leave a model less ready than is sent: nothing has placed it anew since."""
    return any(
        drain.disaster and drain.asked <= event.at and event.wall <= _repaired(story, drain, model)
        for drain in story.drains
    )


def _repaired(story: Story, drain: Drained, model: str) -> float:
    """When the first change that was asked after the disaster had placed the model.

    Without such a change, it is some time after the region's end.
    """
    over = drain.wall - drain.asked + min(drain.drained, drain.returned)
    return story.ended(drain, model, PLACING, over + REPAIR_SECONDS)


def supply(story: Story) -> Iterable[str]:
    """No region runs more than it has units, by the most generous fleet of the run."""
    units = max([story.meta["units"], *(event.value["units"] for event in story.history if event.f == "fleet")])
    for event in story.samples:
        for region, taken in event.value["taken"].items():
            if taken > units:
                yield f"at {event.at:.2f}: {region} runs {taken} processes of one unit each, it has {units}"


def one_at_a_time(story: Story) -> Iterable[str]:
    """A transition of a model has ended before its next one begins."""
    runs = [run for run in story.dump["workflows"] if run["type"] == "transition"]
    for model, changes in story.changes.items():
        names = {f"transition/{change.id}" for change in changes}
        own = sorted((run for run in runs if run["id"] in names), key=lambda run: run["begun"])
        for earlier, later in pairwise(own):
            if earlier["closed"] is None or earlier["closed"] > later["begun"]:
                yield f"{model}: {later['id']} began while {earlier['id']} was under way"


def runs_ended(story: Story) -> Iterable[str]:
    """No workflow runs but the reconciler and entities without work, and none failed that the nemesis did not end.

    A run beyond the limit of histories is ended by the server, and no shorter one.
    """
    for run in story.dump["workflows"]:
        if run["status"] == "TERMINATED" and (run.get("run") in story.terminated or story.met_limit(run)):
            continue
        if run["type"] == RECONCILER and run["status"] == "RUNNING":
            continue
        if run["status"] == "RUNNING" and (run["type"] != ENTITY or run["stage"] not in {"idle", None}):
            yield f"{run['id']} still runs ({run['stage']})"
        if run["status"] in FAILED_RUNS:
            yield f"{run['id']} ended as {run['status']}"
    for model, changes in story.changes.items():
        yield from (f"{model}: {c.kind} {c.id} is {c.state}" for c in changes if c.state not in FINAL)
    yield from (f"replan {r['id']} is {r['state']}" for r in story.dump["replans"] if not r["final"])


def orphans(story: Story) -> Iterable[str]:
    """When the platform has ended, nothing of it runs."""
    event = story.last("ended")
    if event is None:
        yield "the platform was not seen to end"
        return
    yield from (f"still runs: {line}" for line in event.value["left_over"])
    if event.value["status"] != 0:
        yield f"the platform ended with status {event.value['status']}"


def failed_requests(story: Story) -> Iterable[str]:
    """Requests fail only while their region's data plane has a fault or it is lost.

    Faults of the control plane fail none.
    """
    yield from (f"{_place(asked)}: {asked.end.value}" for asked in failures(story) if not excused(story, asked))


def failures(story: Story) -> list[Asked]:
    """Requests that were not answered with a result."""
    return [asked for asked in story.requests if not asked.answered]


def excused(story: Story, asked: Asked) -> bool:
    """Whether a fault of the data plane that may have answered the request was open.

    A disaster not yet routed around counts as one.
    """
    at = (asked.begin.at, asked.end.at)
    if story.lost(asked.region, *at) or any(drain.routes_around(*at) for drain in story.drains):
        return True
    if story.dropped(asked) and unrepaired(story, asked.model, asked.begin):
        return True
    windows = [w for w in story.windows if w.touches_data and w.covers(asked.begin.at, asked.end.at)]
    return any(window.fault["region"] in {asked.region, *story.reached(asked)} for window in windows)


def final_state(story: Story) -> Iterable[str]:
    """In the end the newest serves, everywhere, and every request is answered by it."""
    quiet = story.last("quiet")
    if quiet is None:
        yield "the run did not come to rest"
        return
    for model, told in story.dump["models"].items():
        if told["retired"]:
            yield from (f"{model} is retired and still holds {key}" for key in told["held"])
            continue
        wanted = story.serving(model, quiet.wall)
        if told["serving"] != wanted:
            yield (
                f"{model}: the store says that {told['serving']} serves, the last change that was done brought {wanted}"
            )
        last = [e for e in story.acknowledged("publish") if e.value["model"] == model][-1:]
        if last and last[0].value["generation"] != wanted:
            yield f"{model}: the last publish brought generation {last[0].value['generation']}, {wanted} serves"
    for event in story.samples:
        if event.at >= quiet.at:
            yield from _astray(story, event)
    for asked in story.requests:
        if asked.begin.at < quiet.at:
            continue
        found = asked.end.value.get("generation")
        if not asked.answered or found != story.dump["models"][asked.model]["serving"]:
            yield f"{_place(asked)}: at rest, {found} answered ({asked.end.value.get('error', 'ok')})"


def healed(story: Story) -> Iterable[str]:
    """After each fault all becomes whole again by itself."""
    yield from (f"{window} was never healed" for window in story.windows if window.end is None)


RULES: Sequence[Rule] = (
    lost_publishes,
    mixed_answers,
    unvalidated_answers,
    order,
    capacity_floor,
    supply,
    one_at_a_time,
    runs_ended,
    orphans,
    failed_requests,
    final_state,
    healed,
    unplaceable,
    frozen,
    paused,
    bad_generations,
    drained,
)


def check(history: Sequence[Event]) -> list[Violation]:
    """Every broken promise of a history."""
    story = Story(history)
    return [Violation(rule.__name__, message) for rule in RULES for message in rule(story)]


def _astray(story: Story, sample: Event) -> Iterable[str]:
    """Gateways that send users to another generation than the store says serves."""
    for region, tables in sample.value["tables"].items():
        for model, shares in tables.items():
            serving = story.dump["models"].get(model, {}).get("serving")
            sent = {generation for _, generation, fraction in shares if fraction > 0}
            if sent - {serving}:
                yield f"{model}: at rest, the gateway of {region} sends to generation {sorted(sent)}, {serving} serves"


def _place(asked: Asked) -> str:
    return f"{asked.model} at {asked.region} at {asked.begin.at:.2f}"
