"""The order of a change's stages: the default one, changed by the platform's entries, then by the manifest's.

Entries apply one after another to a list, so an order has no circle and no ambiguity. Pure functions.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from ipnext.errors import InvalidInput
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.lifecycle.stages import DEFAULT_STAGES, OPTIONAL_STAGES, SAFETY_CRITICAL
from ipnext.model.manifest.stages import PlatformStageEntry, StageEntry

OF_MANIFEST = "spec.lifecycle"
OF_PLATFORM = "lifecycle (IPNEXT_LIFECYCLE)"

_LAST = "transition"
"""The stage that moves traffic: nothing comes after it."""
_JUDGES_FIRST = ("metadata", "validation")
"""Stages that come before any of another distribution: no other code reads bytes that were not validated."""
_PLANS = "planning"
"""The stage that comes before optional built-in ones."""


@dataclass(frozen=True, slots=True)
class PlacedStage:
    """A stage in an order; `entry` is None for a built-in one."""

    name: str
    entry: StageEntry | None = None
    place: str = ""
    """The entry's place in the manifest or the setting."""

    @property
    def is_required(self) -> bool:
        """True if it can be neither left out nor replaced by a manifest."""
        return isinstance(self.entry, PlatformStageEntry) and self.entry.required


Order = tuple[PlacedStage, ...]


def compose(
    kind: ChangeKind, platform: Sequence[PlatformStageEntry], own: Sequence[StageEntry], *, optimizes: bool
) -> Order:
    """Return the stages of a change in their order.

    `optimizes`: the manifest has `spec.split` or `spec.optimization`.

    Raises InvalidInput: an entry names a stage that is not in the order by then, one that must stay, or a place that no
    stage of another distribution may take.
    """
    order: Order = tuple(map(PlacedStage, DEFAULT_STAGES[kind]))
    for entry, place in (*_numbered(platform, OF_PLATFORM), *_numbered(own, OF_MANIFEST)):
        if kind in entry.changes:
            order = _Change(kind, entry, place, optimizes=optimizes).applied(order)
    return order


def check_entries(platform: Sequence[PlatformStageEntry], own: Sequence[StageEntry], *, optimizes: bool) -> None:
    """Check the entries for every kind of change. Raises InvalidInput."""
    for kind in ChangeKind:
        compose(kind, platform, own, optimizes=optimizes)


def _numbered(entries: Iterable[StageEntry], of: str) -> Iterable[tuple[StageEntry, str]]:
    return ((entry, f"{of}.{index}") for index, entry in enumerate(entries))


@dataclass(frozen=True, slots=True)
class _Change:
    """One entry, for one kind of change."""

    kind: ChangeKind
    entry: StageEntry
    place: str
    optimizes: bool

    def applied(self, order: Order) -> Order:
        names = [stage.name for stage in order]
        if self.entry.anchor not in names:
            self._refuse(f"is no stage of a change of kind {self.kind}", self._allowed(order))
        at = names.index(self.entry.anchor)
        if self.entry.stage is None:
            return self._left_out(order, at)
        if self.entry.stage in names:
            msg = f"{self.place}.stage: {self.entry.stage!r} is in the order of a change of kind {self.kind} already"
            raise InvalidInput(msg, field=f"{self.place}.stage", value=self.entry.stage)
        return self._inserted(order, at)

    def _left_out(self, order: Order, at: int) -> Order:
        if self._passes_over(order[at]):
            return order
        self._check_may_go(order, at)
        return order[:at] + order[at + 1 :]

    def _inserted(self, order: Order, at: int) -> Order:
        placed = PlacedStage(self.entry.stage or "", self.entry, self.place)
        if self.entry.position == "replaces" and not self._passes_over(order[at]):
            self._check_may_go(order, at)
            self._check_place(order, at)
            return (*order[:at], placed, *order[at + 1 :])
        index = at if self.entry.position == "before" else at + 1
        self._check_place(order, index)
        return (*order[:index], placed, *order[index:])

    def _check_place(self, order: Order, index: int) -> None:
        if self._may_take(order, index):
            return
        why = "a stage of another distribution comes after metadata and validation, before any traffic moves"
        if self.entry.stage in OPTIONAL_STAGES:
            why = f"{self.entry.stage} comes after {_PLANS}, which plans its replicas, before any traffic moves"
        self._refuse(f"leaves no place there: {why}", self._allowed(order))

    def _check_may_go(self, order: Order, at: int) -> None:
        if self._must_stay(order[at]):
            why = "is required by the platform" if order[at].is_required else "is safety-critical"
            if order[at].name not in SAFETY_CRITICAL and not order[at].is_required:
                why = "carries out spec.split or spec.optimization, which the manifest has,"
            self._refuse(f"{why} and stays", self._allowed(order))

    def _must_stay(self, stage: PlacedStage) -> bool:
        if stage.entry is not None:
            return stage.is_required and not isinstance(self.entry, PlatformStageEntry)
        return stage.name in SAFETY_CRITICAL or self.optimizes

    def _passes_over(self, stage: PlacedStage) -> bool:
        """Check whether an entry for all models leaves alone the one stage that a model with a split or steps needs."""
        is_needed = stage.entry is None and stage.name not in SAFETY_CRITICAL and self.optimizes
        return is_needed and isinstance(self.entry, PlatformStageEntry)

    def _may_take(self, order: Order, index: int) -> bool:
        following = [stage.name for stage in order[index:]]
        if self.entry.stage in OPTIONAL_STAGES and _PLANS not in {stage.name for stage in order[:index]}:
            return False
        return _LAST in following and not any(name in following for name in _JUDGES_FIRST)

    def _allowed(self, order: Order) -> tuple[str, ...]:
        """Return the stages that the entry may name instead."""
        if self.entry.position in {"leaveOut", "replaces"}:
            named = self.entry.stage is not None
            may_go = (at for at, stage in enumerate(order) if not self._must_stay(stage))
            return tuple(order[at].name for at in may_go if not named or self._may_take(order, at))
        shift = 0 if self.entry.position == "before" else 1
        return tuple(stage.name for at, stage in enumerate(order) if self._may_take(order, at + shift))

    def _refuse(self, why: str, allowed: tuple[str, ...]) -> None:
        field = f"{self.place}.{self.entry.position}"
        msg = f"{field}: {self.entry.anchor!r} {why}; allowed: {', '.join(allowed) or 'none'}"
        raise InvalidInput(msg, field=field, value=self.entry.anchor, allowed=allowed)
