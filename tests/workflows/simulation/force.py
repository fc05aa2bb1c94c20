"""Which manifest a model goes by: accepted, in force, restored, by the real functions of the store on plain values."""

from collections.abc import Iterable
from random import Random
from types import SimpleNamespace
from typing import Any, cast

from activities.planning import activities as planning
from activities.state import serving_basis
from ipnext.model.lifecycle.messages import ChangeKind, StageInput
from ipnext.store.registry.models import Models

from .journal import Change, Placement, Record

USUAL, REFUSED, TOO_LARGE = "usual", "refused", "too large"
KINDS = (USUAL, USUAL, USUAL, REFUSED, TOO_LARGE)
"""What becomes of a manifest: its validation accepts it, its validation refuses it, nothing can be placed by it."""

AFTERWARDS = (
    (),
    ("publish",),
    ("publish", "repair"),
    ("publish", "repair", "repair"),
    ("replan",),
    ("rollback",),
    ("freeze",),
    ("publish", "abort"),
    ("repair",),
)
"""What is asked of the model soon after it got another manifest."""

REST = 0.4
"""Of changes of mind: those without a manifest besides."""

BEYOND = 1e5
"""Times the demand: more than any fleet carries."""


class Manifests:
    """Manifests of one history. Without `counts` the newest one of each model is always in force."""

    def __init__(self, world: Any, random: Random, *, counts: bool) -> None:
        self.world, self.random, self.counts = world, random, counts
        self.kinds: dict[tuple[str, int], str] = {}

    def kind(self, model: str, revision: int) -> str:
        """Draw what becomes of a revision."""
        if not self.counts:
            return USUAL
        kind = self.kinds[model, revision] = self.random.choice(KINDS)
        self.world.count(f"manifest: {kind}")
        return kind

    def further(self) -> Iterable[tuple[float, str, str]]:
        """What is asked besides: manifests, some with more after them. Each in so many seconds, with its model."""
        if not self.counts or self.random.random() < REST:
            return
        model = self.random.choice(sorted(self.world.journal.records))
        yield 0.0, "apply", model
        for kind in self.random.choice(AFTERWARDS):
            yield self.random.choice((0.0, 10.0, 40.0)) * self.random.random(), kind, model

    def served(self, model: str) -> None:
        """The first manifest serves from the beginning."""
        if self.counts:
            store = self._store
            store.accept_revision(model, 1)
            store.put_in_force(model)
            self._record(model).observed = 1

    def validated(self, model: str, revision: int, *, sound: bool) -> str:
        """Accept a revision, or tell why it is refused. `sound`: nothing is wrong with the snapshots."""
        if not self.counts:
            return "" if sound else "not finite"
        refused = self.kinds.get((model, revision)) == REFUSED
        if sound and not refused:
            self._store.accept_revision(model, revision)
            return ""
        self._store.refuse_revision(model, revision)
        return "the manifest is refused" if refused else "not finite"

    def of(self, change: Change) -> tuple[int, Any]:
        """The revision that a change is placed by, and its manifest."""
        record = self._record(change.model)
        judged = record.validated if change.kind in {ChangeKind.PUBLISH, ChangeKind.APPLY} else record.accepted
        revision = judged.revision if judged else record.revision
        return revision, record.manifests[revision]

    def go_by(self, change: Change, generation: int, plan_id: str) -> None:
        """By the real function, in the unit that adopts the placement. `plan_id` is the plan of that placement."""
        if self.counts:
            stage = StageInput(
                model=change.model, change_id=change.id, kind=change.kind, generation=generation, plan_id=plan_id
            )
            store, placed = self._store, self._record(change.model).placement
            seen = cast("Any", store.model(change.model))
            planning.adopt_manifest(cast("Any", store), stage, seen, cast("Any", placed), plan_id=plan_id)

    def ended(self, change: Change, *, done: bool) -> Placement | None:
        """By the real function. Return the placement that the change had found, if it was placed."""
        record = self._record(change.model)
        former = record.former if record.former and record.former.change_id == change.id else None
        if self.counts:
            self._store.end_force(change.model, change_id=change.id, done=done)
        return cast("Placement | None", former.placement) if former is not None else None

    def basis(self, change: Change) -> tuple[int, Any, Placement | None]:
        """Revision, manifest and placement that the waves of a change are planned by."""
        store, record = self._store, self._record(change.model)
        serving_basis.go_by_what_serves(cast("Any", store), change.model, change.id)
        accepted, placed = record.accepted, record.placement
        if change.model in store.by_former and record.former is not None:
            self.world.faults.count("a repair goes by what serves, not by what waits")
            accepted, placed = record.former.accepted, cast("Placement | None", record.former.placement)
        revision = accepted.revision if accepted else record.revision
        return revision, record.manifests[revision], placed

    def planned_by(self, record: Record) -> Any:
        """The manifest that a plan of the fleet takes: while the newest one is refused, that of the placement."""
        if self.counts and record.placement is not None and record.refused is not None:
            return record.manifests[record.placement.revision]
        return record.in_force

    @property
    def _store(self) -> "_Store":
        return _Store(self.world)

    def _record(self, model: str) -> Record:
        return cast("Record", self.world.journal.records[model])


class _Store:
    """What the real functions ask of a unit of work, and those of them that are the store's own."""

    def __init__(self, world: Any) -> None:
        self.world, self.journal = world, world.journal
        self.by_former = set[str]()

    def model(self, name: str) -> SimpleNamespace:
        record = self.journal.records[name]
        return SimpleNamespace(
            generation=record.revision,
            observed_generation=record.observed,
            refused_generation=record.refused,
            validated=record.validated,
            accepted=record.accepted,
            former=record.former,
        )

    def accept_revision(self, name: str, revision: int) -> None:
        Models.accept_revision(cast("Any", self), name, revision, cast("Any", None))

    def refuse_revision(self, name: str, revision: int) -> None:
        Models.refuse_revision(cast("Any", self), name, revision)

    def put_in_force(self, name: str) -> None:
        Models.put_in_force(cast("Any", self), name)

    def keep_former(self, name: str, *, change_id: str, generation: int, placed: Any, plan_id: str) -> None:
        record = self.journal.records[name]
        kept = record.former.placement if record.former is not None else placed
        Models.keep_former(
            cast("Any", self), name, change_id=change_id, generation=generation, placed=None, plan_id=plan_id
        )
        record.former = record.former.model_copy(update={"placement": kept})

    def end_force(self, name: str, *, change_id: str, done: bool) -> None:
        Models.end_force(cast("Any", self), name, change_id=change_id, done=done)

    def go_by_former(self, name: str) -> None:
        self.by_former.add(name)

    def update_model(self, name: str, *, refused_generation: int | None) -> None:
        self.journal.records[name].refused = refused_generation

    def _judge(self, name: str, **judged: Any) -> None:
        vars(self.journal.records[name]).update(judged)

    def check_fence(self, change_id: str) -> None:
        self.journal.check_fence(change_id, 0)

    def change(self, change_id: str) -> Change:
        return cast("Change", self.journal.by_id[change_id])

    def placement(self, name: str) -> Any:
        return self.journal.placement(name)

    def drains(self) -> Iterable[SimpleNamespace]:
        out = self.world.out
        return [SimpleNamespace(region=r, holds=True, lost=r in out.lost, force=False) for r in sorted(out.regions)]
