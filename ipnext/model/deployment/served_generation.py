"""A generation as a router needs it to answer with it."""

from collections.abc import Mapping
from datetime import datetime

from pydantic import Field

from ipnext.model.registry.adapter import ServedAdapter
from ipnext.model.registry.registry import PartGraph, SyncPolicy, TensorSpec
from ipnext.model.settings.kv_transfer import Handoff
from ipnext.model.settings.routing import RoutingPolicy
from ipnext.model.value import Name, Value


class SnapshotFacts(Value):
    """The facts of a snapshot that a router needs to let another one of the same part answer in its place."""

    created_at: datetime
    signature: str
    """Digest of its signature: only snapshots with the same signature may replace each other."""
    published: int | None = None
    """Number of the published snapshot that it was derived from: all that were derived of one count as one."""


class ServedGeneration(Value):
    """The data that a router needs to answer with one generation of a model."""

    generation: int
    graph: PartGraph
    snapshots: Mapping[str, int]
    """Part -> snapshot number."""
    by_hardware: Mapping[Name, Mapping[str, int]] = Field(default_factory=dict, exclude_if=lambda kinds: not kinds)
    """Hardware kind -> part -> number, of snapshots that hosts of this kind answer with in the place of those above.
    All of a part were derived from one published snapshot, and any of them may answer for the generation."""
    sync: SyncPolicy = SyncPolicy()
    facts: Mapping[str, SnapshotFacts] = Field(default_factory=dict)
    """Part -> facts of its snapshot; a part without facts answers with exactly this snapshot."""
    engines: Mapping[str, str] = Field(default_factory=dict)
    """Part -> engine, for engines with their own server: a router uses their protocol."""
    routing: Mapping[str, RoutingPolicy] = Field(default_factory=dict)
    """Part -> the router's policy for the choice of an engine; default `prefix`."""
    contexts: Mapping[str, int] = Field(default_factory=dict)
    """Part -> most tokens of a prompt and its answer together, if the manifest states it."""
    handoff: Handoff | None = None
    """The two parts with their own servers that answer a request one after the other."""
    adapters: Mapping[str, ServedAdapter] = Field(default_factory=dict)
    """Part that is an adapter -> its name in its engines."""
    inputs: tuple[TensorSpec, ...] = ()
    """Tensors of an OpenAI request beside its prompt, for the nodes of a graph that ends in a generator."""

    def snapshot_on(self, part: str, hardware: str) -> int:
        """Return the number of the snapshot with which hosts of a hardware kind answer for a part."""
        return self.by_hardware.get(hardware, {}).get(part, self.snapshots[part])

    @property
    def named(self) -> tuple[tuple[str, int], ...]:
        """(part, number) of all snapshots that answer, on whatever hardware."""
        others = (pair for numbers in self.by_hardware.values() for pair in numbers.items())
        return tuple(dict.fromkeys((*self.snapshots.items(), *others)))
