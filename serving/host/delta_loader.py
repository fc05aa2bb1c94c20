"""Loading of deltas: onto a loaded parent, else along the lineage in the artifact store, else from the full result.

The artifact store names snapshots by digest, so the parent's digest is enough to find it.
"""

import mmap
from collections.abc import Collection, Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Literal, Protocol, runtime_checkable

from ipnext.artifacts.layout import snapshot_uri
from ipnext.errors import ArtifactMissing, LoadFailed
from ipnext.model.deployment.footprint import needed_bytes
from ipnext.model.registry.delta import DeltaDocument
from serving.engines.base import Engine, LoadedPart
from serving.snapshots.fetch import LocalSnapshot, fetch, verify_snapshot
from serving.snapshots.fetch_process import Fetcher
from serving.weights.delta_snapshot import Delta, read_delta, read_document

LONGEST_CHAIN: Final = 256
"""Deltas between a snapshot and its full ancestor; if none of the chain is loaded, each is applied in turn."""


@runtime_checkable
class TakesDeltas(Protocol):
    """A loaded part whose engine can apply deltas."""

    def changed_by(self, delta: Delta, *, parent_stays: bool) -> LoadedPart:
        """Return a new part with the delta applied.

        Its `size_bytes` excludes memory shared with a parent that stays loaded.
        """

    def check_delta(self, document: DeltaDocument, when: Literal["before", "after"]) -> None:
        """Compare the digests of all rows with those that a delta declares before or after it.

        LoadFailed if they differ.
        """


@dataclass(frozen=True, slots=True)
class Chain:
    """Sources of one snapshot: a loaded parent or a full snapshot, and the deltas to apply to it, oldest first."""

    ground: str
    base: LocalSnapshot | None
    """The full snapshot; None if the host has loaded `ground`."""
    deltas: tuple[LocalSnapshot, ...] = ()
    result_of: LocalSnapshot | None = None
    """The delta that declares `base` as its full result."""

    @property
    def needed_bytes(self) -> int:
        """Memory that loading is expected to take.

        It is the base, if it must be loaded, and at most one page per changed row.
        """
        documents = [read_document(delta.directory) for delta in self.deltas]
        rows = sum(tensor.rows for document in documents for tensor in document.tensors.values())
        return rows * mmap.PAGESIZE + (needed_bytes(self.base.manifest) if self.base else 0)

    @property
    def made_from(self) -> str:
        """Description of the sources for the host's log."""
        origin = "held" if self.base is None else "fetched" if self.result_of is None else "the full result of a delta,"
        return (
            f"{len(self.deltas)} delta(s) on {origin} {self.ground:.12}"
            if self.deltas
            else f"{origin} {self.ground:.12}"
        )

    def load(self, engine: Engine, settings: Mapping[str, Any], held: Mapping[str, LoadedPart]) -> LoadedPart:
        """Load the base if needed, apply the deltas, and return the part. `held` are the host's loaded parts by digest.

        LoadFailed if a delta does not fit, or the engine takes none; errors of `verify_snapshot`. If a base is loaded
        only for its deltas, its row digests are checked; that is cheap compared with the load.
        """
        part = held[self.ground] if self.base is None else self._load_base(self.base, engine, settings)
        for delta in self.deltas:
            part = _taker(part).changed_by(read_delta(verify_snapshot(delta)), parent_stays=part in held.values())
        return part

    def _load_base(self, base: LocalSnapshot, engine: Engine, settings: Mapping[str, Any]) -> LoadedPart:
        part = engine.load(verify_snapshot(base), base.manifest, settings)
        if self.result_of is not None:
            _taker(part).check_delta(read_document(verify_snapshot(self.result_of)), "after")
        elif self.deltas:
            _taker(part).check_delta(read_document(verify_snapshot(self.deltas[0])), "before")
        return part


def _taker(part: LoadedPart) -> TakesDeltas:
    if not isinstance(part, TakesDeltas):
        msg = "this engine takes no deltas; publish a full snapshot"
        raise LoadFailed(msg)
    return part


def fetch_chain(store: Fetcher, uri: str, cache: Path, snapshot: LocalSnapshot, held: Collection[str]) -> Chain:
    """Fetch all snapshots that `snapshot`, stored under `uri`, needs in addition to the `held` digests.

    A parent is looked up in `held`, then in the store. If one is missing, the nearest descendant that names its full
    result is fetched whole. LoadFailed names the missing snapshot.
    """
    chain = [snapshot]
    try:
        while chain[-1].manifest.is_delta and len(chain) <= LONGEST_CHAIN:
            parent = _parent(chain[-1])
            if parent in held:
                return Chain(parent, None, _deltas(chain))
            chain.append(_fetch_beside(store, uri, cache, parent, chain[0]))
            _check_same_program(*chain[-2:])
    except ArtifactMissing as error:
        return _from_full(store, uri, cache, chain, error)
    if chain[-1].manifest.is_delta:
        msg = f"the snapshot stands on more than {LONGEST_CHAIN} deltas; publish a full snapshot"
        raise LoadFailed(msg)
    return Chain(chain[-1].manifest.digest, chain[-1], _deltas(chain[:-1]))


def _from_full(store: Fetcher, uri: str, cache: Path, chain: list[LocalSnapshot], missing: ArtifactMissing) -> Chain:
    """Start from the full result of the oldest delta that has one in the store: most fetched deltas are used then."""
    named = [(place, read_document(verify_snapshot(each)).full) for place, each in enumerate(chain)]
    for place, full in reversed(named):
        if full is None:
            continue
        with suppress(ArtifactMissing):
            base = _fetch_beside(store, uri, cache, full, chain[0])
            _check_same_program(chain[place], base)
            return Chain(full, base, _deltas(chain[:place]), result_of=chain[place])
    wanted = ", ".join(full for _, full in named if full) or "none named"
    msg = (
        f"the snapshot is a delta whose parent {_parent(chain[-1])} is neither held here nor in the store "
        f"({missing.message}), and no full result of it is there ({wanted}); publish a full snapshot"
    )
    raise LoadFailed(msg) from missing


def _fetch_beside(store: Fetcher, uri: str, cache: Path, digest: str, asked: LocalSnapshot) -> LocalSnapshot:
    """Fetch another snapshot of the store for the one that was `asked` for, and guard it like that."""
    other = snapshot_uri(uri.rpartition("/snapshots/")[0], digest)
    return fetch(store, other, cache, digest=digest, is_guarded=asked.is_guarded)


def _check_same_program(delta: LocalSnapshot, other: LocalSnapshot) -> None:
    ours, theirs = delta.manifest, other.manifest
    if (ours.engine, ours.signature) != (theirs.engine, theirs.signature):
        msg = (
            f"delta {ours.digest} and {theirs.digest}, which it names, differ in engine or signature; "
            "publish a full snapshot"
        )
        raise LoadFailed(msg)


def _parent(snapshot: LocalSnapshot) -> str:
    if snapshot.manifest.parent is None:
        msg = f"{snapshot.directory.name} is a delta that names no parent; publish a full snapshot"
        raise LoadFailed(msg)
    return snapshot.manifest.parent


def _deltas(newest_first: list[LocalSnapshot]) -> tuple[LocalSnapshot, ...]:
    return tuple(reversed(newest_first))
