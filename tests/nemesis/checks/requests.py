"""Rules about what people asked for: freezes, pauses, gates and drains. Each is a pure function of the story."""

import math
from collections.abc import Iterable, Mapping
from typing import Any

from tests.nemesis.checks.spans import Drained, Span
from tests.nemesis.checks.story import Change, Story

FREEZABLE = frozenset({"publish", "apply", "move"})
"""Kinds that a freeze and a pause hold back; a rollback and a retirement pass."""
LAST_CHILD_SECONDS = 2.0
"""How long after a pause was taken a change may still begin that the entity had begun before it."""
SAMPLE_SECONDS = 3.0
"""A sample is written once all regions were asked: it tells of so long before, at most."""


def frozen(story: Story) -> Iterable[str]:
    """No change that asked after a freeze began begins its transition before the freeze is lifted."""
    for span in story.freezes:
        for change, run, transition in _carried(story, span):
            if run["begun"] > span.begin and span.holds(transition["begun"]):
                late = span.end - transition["begun"]
                yield (
                    f"{change.model}: {change.kind} {change.id} began its transition {late:.1f} s before the "
                    "freeze was lifted"
                )


def paused(story: Story) -> Iterable[str]:
    """While a model is paused nothing of it begins, and what runs makes no step but the one that was under way."""
    for span in story.pauses:
        for change in _held_back(story, span):
            run = story.runs.get(f"lifecycle/{change.model}/{change.id}")
            if run is not None and span.begin + LAST_CHILD_SECONDS < run["begun"] < span.end:
                yield f"{change.model}: {change.kind} {change.id} began while the model was paused"
        for change, _, transition in _carried(story, span):
            steps = [name for name, at, back in transition.get("steps", ()) if span.holds(at) and not back]
            if len(steps) > 1:
                yield f"{change.model}: {change.kind} {change.id} went on while paused: {', '.join(steps)}"


def _held_back(story: Story, span: Span) -> list[Change]:
    return [change for change in story.changes.get(span.model, ()) if change.kind in FREEZABLE]


def _carried(story: Story, span: Span) -> Iterable[tuple[Change, Mapping[str, Any], Mapping[str, Any]]]:
    """Changes of a model that may be held back, with their run and their transition."""
    for change in _held_back(story, span):
        run = story.runs.get(f"lifecycle/{change.model}/{change.id}")
        transition = story.runs.get(f"transition/{change.id}")
        if run is not None and transition is not None:
            yield change, run, transition


def bad_generations(story: Story) -> Iterable[str]:
    """What answers too slowly or predicts otherwise never gets through its gate."""
    for event in story.acknowledged("publish"):
        if "bad" not in event.value:
            continue
        model, generation = event.value["model"], event.value["generation"]
        for change in story.changes[model]:
            if change.state == "done" and change.generation == generation:
                yield f"{model}: generation {generation} is {event.value['bad']}, and {change.kind} {change.id} is done"
        if story.dump["models"][model]["serving"] == generation:
            yield f"{model}: generation {generation} is {event.value['bad']}, and serves"


def unplaceable(story: Story) -> Iterable[str]:
    """A manifest that nothing can be placed by is refused: its change moves nothing, and what serves goes on.

    A change goes by the manifest that is the newest as it is validated. The history does not have that moment: one that
    was applied before the change's end excuses it.
    """
    for event in story.acknowledged("apply"):
        if not event.value.get("unplaceable"):
            continue
        for change in story.changes[event.value["model"]]:
            if change.id != event.value["id"] or _has_newer_manifest(story, change):
                continue
            if change.state in {"done", "rolled_back"}:
                yield (
                    f"{change.model}: nothing can be placed by the manifest of {change.kind} {change.id}, "
                    f"which is {change.state}"
                )
            if f"transition/{change.id}" in story.runs:
                yield (
                    f"{change.model}: {change.kind} {change.id} moves the model, "
                    "and nothing can be placed by its manifest"
                )


def _has_newer_manifest(story: Story, change: Change) -> bool:
    """Another manifest was applied before the change ended."""
    return any(
        other.kind == "apply" and other.sequence > change.sequence and other.created < (change.finished or math.inf)
        for other in story.changes[change.model]
    )


def drained(story: Story) -> Iterable[str]:
    """A drained region gets no traffic until it is asked back; after a planned drain nothing runs there either."""
    for drain in story.drains:
        for event in story.samples:
            if drain.drained + SAMPLE_SECONDS < event.at < drain.undrain:
                yield from (f"at {event.at:.2f}: {told}" for told in _left(drain, event.value))


def _left(drain: Drained, sample: Mapping[str, Any]) -> Iterable[str]:
    for gateway, models in sample["tables"].items():
        if drain.disaster and gateway == drain.region:
            continue
        for model, shares in models.items():
            yield from (
                f"{gateway} sends {part:g} of {model} to {to}, which is drained"
                for to, _, part in shares
                if to == drain.region
            )
    if not drain.disaster:
        yield from (
            f"{drain.region} is drained and has {model}.{part} ready"
            for model, part, _ in sample["replicas"].get(drain.region, ())
        )
