"""The snapshots that a host has loaded or must load, their generations, and leases of requests on them.

Pure state, no I/O. The host's event loop is the only caller. A snapshot passes through these states: desired, loaded
(or failed), no longer desired, and, once its last lease is returned, released for closing.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from ipnext.errors import GenerationNotHeld, InvalidInput
from ipnext.model.deployment.host_control import HeldGeneration, HostedSnapshot, HostFailure
from ipnext.model.value import canonical_json
from ipnext.revision import Revision

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class HoldKey:
    """Identity of a loaded snapshot: two holds with the same key share one. Generations are not part of it."""

    model: str
    part: str
    snapshot: int
    digest: str
    engine: str
    settings: str
    adapters: int = 0


def hold_key(hold: HostedSnapshot) -> HoldKey:
    """Return the key of a hold."""
    settings = canonical_json(dict(hold.settings))
    return HoldKey(hold.model, hold.part, hold.snapshot, hold.digest, hold.engine, settings, hold.adapters)


@dataclass(slots=True, eq=False)
class _Entry(Generic[T]):
    hold: HostedSnapshot
    value: T | None = None
    failure: tuple[str, str] | None = None
    leases: int = 0
    wanted: bool = True


@dataclass(frozen=True, slots=True, eq=False)
class Lease(Generic[T]):
    """The right to use a loaded snapshot until `HeldSnapshots.release`."""

    value: T
    snapshot: int
    generation: int
    """As requested; the snapshot may serve others too."""
    entry: _Entry[T] = field(repr=False)

    @property
    def digest(self) -> str:
        """Digest of the snapshot."""
        return self.entry.hold.digest


@dataclass(frozen=True, slots=True)
class SnapshotChanges(Generic[T]):
    """Actions that a new set of holds requires: snapshots to load, and unused ones to close."""

    load: tuple[HostedSnapshot, ...] = ()
    close: tuple[T, ...] = ()


class HeldSnapshots(Generic[T]):
    """The holds of one host. T is the loaded part."""

    def __init__(self) -> None:
        self._entries: dict[HoldKey, _Entry[T]] = {}
        self._ready: dict[tuple[str, str, int], _Entry[T]] = {}
        self.ends = Revision()
        """Rises when a load has ended, successfully or not."""

    def want(self, holds: Sequence[HostedSnapshot]) -> SnapshotChanges[T]:
        """Replace the desired set. InvalidInput if one generation of a part has two snapshots."""
        wanted = _by_key(holds)
        dropped = [entry for key, entry in self._entries.items() if key not in wanted]
        new = [hold for key, hold in wanted.items() if key not in self._entries]
        kept = {key: self._entries.get(key) or _Entry(hold) for key, hold in wanted.items()}
        for key, entry in kept.items():
            entry.hold = wanted[key]
        for entry in dropped:
            entry.wanted = False
        self._entries = kept
        self._index()
        return SnapshotChanges(tuple(new), tuple(v for entry in dropped if (v := _pop_unused(entry)) is not None))

    def wants(self, hold: HostedSnapshot) -> bool:
        """Whether the snapshot is still desired."""
        return hold_key(hold) in self._entries

    def note_loaded(self, hold: HostedSnapshot, value: T) -> bool:
        """Record a loaded snapshot.

        If it is no longer desired, or already loaded: False, and the caller closes the value.
        """
        entry = self._entries.get(hold_key(hold))
        if entry is None or entry.value is not None:
            return False
        entry.value, entry.failure = value, None
        self._index()
        self.ends.rise()
        return True

    def note_failed(self, hold: HostedSnapshot, code: str, message: str) -> None:
        """Record a failed load. The snapshot stays failed until it is no longer desired."""
        entry = self._entries.get(hold_key(hold))
        if entry is not None and entry.value is None:
            entry.failure = (code, message)
            self.ends.rise()

    def lease(self, model: str, part: str, generation: int) -> Lease[T]:
        """Lease the snapshot that serves a generation. GenerationNotHeld names those that are ready."""
        entry = self._ready.get((model, part, generation))
        if entry is None or entry.value is None:
            held = sorted(g for m, p, g in self._ready if (m, p) == (model, part))
            msg = f"generation {generation} of {model}.{part} is not ready here; ready: {held or 'none'}"
            raise GenerationNotHeld(msg)
        entry.leases += 1
        return Lease(entry.value, entry.hold.snapshot, generation, entry)

    def relatives(self, hold: HostedSnapshot) -> tuple[Lease[T], ...]:
        """Lease all loaded snapshots of the same part, engine and settings; the caller must return each lease."""
        leases = []
        for entry in self._entries.values():
            if entry.value is not None and _are_related(entry.hold, hold):
                entry.leases += 1
                leases.append(Lease(entry.value, entry.hold.snapshot, entry.hold.generations[0], entry))
        return tuple(leases)

    def release(self, lease: Lease[T]) -> T | None:
        """Return a lease. If it was the last on a snapshot no longer desired, its value is returned for closing."""
        lease.entry.leases -= 1
        return _pop_unused(lease.entry) if not lease.entry.wanted else None

    @property
    def values(self) -> tuple[tuple[HostedSnapshot, T], ...]:
        """All snapshots that are loaded and desired."""
        return tuple((entry.hold, entry.value) for entry in self._entries.values() if entry.value is not None)

    @property
    def ready(self) -> tuple[HeldGeneration, ...]:
        """All generations that can be leased now."""
        return tuple(h for entry in self._entries.values() if entry.value is not None for h in _generations(entry))

    @property
    def loading(self) -> tuple[HeldGeneration, ...]:
        """All generations that wait for a load."""
        waiting = [e for e in self._entries.values() if e.value is None and e.failure is None]
        return tuple(h for entry in waiting for h in _generations(entry))

    @property
    def failures(self) -> tuple[HostFailure, ...]:
        """All snapshots that failed to load."""
        return tuple(_failure(entry, *entry.failure) for entry in self._entries.values() if entry.failure is not None)

    def _index(self) -> None:
        self._ready = {
            (entry.hold.model, entry.hold.part, generation): entry
            for entry in self._entries.values()
            if entry.value is not None
            for generation in entry.hold.generations
        }


def _are_related(left: HostedSnapshot, right: HostedSnapshot) -> bool:
    same = (left.model, left.part, left.engine) == (right.model, right.part, right.engine)
    return same and canonical_json(dict(left.settings)) == canonical_json(dict(right.settings))


def check_holds(holds: Sequence[HostedSnapshot]) -> None:
    """Raise InvalidInput if one generation of a part has two snapshots."""
    _by_key(holds)


def _by_key(holds: Sequence[HostedSnapshot]) -> dict[HoldKey, HostedSnapshot]:
    seen: dict[tuple[str, str, int], HoldKey] = {}
    for hold in holds:
        for generation in hold.generations:
            other = seen.setdefault((hold.model, hold.part, generation), hold_key(hold))
            if other != hold_key(hold):
                msg = (
                    f"holds: generation {generation} of {hold.model}.{hold.part} has two snapshots, "
                    f"{other.snapshot} ({other.digest:.8}) and {hold.snapshot} ({hold.digest:.8}); name one"
                )
                raise InvalidInput(msg, field="holds", value=generation)
    keyed: dict[HoldKey, HostedSnapshot] = {}
    for hold in holds:
        key = hold_key(hold)
        if key in keyed:
            union = tuple(sorted({*keyed[key].generations, *hold.generations}))
            keyed[key] = hold.model_copy(update={"generations": union})
        else:
            keyed[key] = hold
    return keyed


def _pop_unused(entry: _Entry[T]) -> T | None:
    if entry.leases:
        return None
    value, entry.value = entry.value, None
    return value


def _generations(entry: _Entry[T]) -> tuple[HeldGeneration, ...]:
    hold = entry.hold
    return tuple(
        HeldGeneration(model=hold.model, part=hold.part, generation=g, snapshot=hold.snapshot) for g in hold.generations
    )


def _failure(entry: _Entry[T], code: str, message: str) -> HostFailure:
    hold = entry.hold
    return HostFailure(
        model=hold.model,
        part=hold.part,
        snapshot=hold.snapshot,
        generations=hold.generations,
        code=code,
        message=message,
    )
