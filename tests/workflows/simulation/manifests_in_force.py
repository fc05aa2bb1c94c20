"""Which manifest a model goes by: accepted, in force, restored, by the real functions of the store on plain values."""

from collections.abc import Iterable
from random import Random
from types import SimpleNamespace
from typing import Any, cast

from activities.planning import activities as planning
from activities.planning import adoption, replan
from activities.planning import problem as problems
from activities.state import serving_basis
from activities.validation.schema import check_engines
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.lifecycle.changes.lifecycle_run import StageInput
from ipnext.model.manifest.part import PartSpec
from ipnext.model.planning.plan import ModelProblem
from ipnext.store.operations import change_end
from ipnext.store.registry.models import Models

from .journal import Change, Generation, Placement, Record
from .specs import PARTS, Plain, part_of

USUAL, REFUSED, TOO_LARGE = "usual", "refused", "too large"
KINDS = (USUAL, USUAL, USUAL, REFUSED, TOO_LARGE)
"""What becomes of a manifest: its validation accepts it, its validation refuses it, nothing can be placed by it."""

USUALLY = (*KINDS, *(USUAL,) * 5)
"""The same of manifests that may have other parts: a publish by one that is refused brings none."""

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

AFTER_OTHER_PARTS = (
    *AFTERWARDS,
    ("publish", "rollback"),
    ("publish", "rollback", "replan"),
    ("publish", "rollback", "apply"),
    ("publish", "replan", "rollback"),
    ("publish", "replan", "repair"),
    ("publish", "apply", "publish", "rollback"),
    ("publish", "apply", "rollback"),
    ("publish", "lose a region"),
    ("publish", "lose a region", "rollback"),
    ("publish", "rollback", "lose a region"),
)
"""The same of manifests that may have other parts."""

REST = 0.4
"""Of requests: those without a manifest besides."""

BEYOND = 1e5
"""Times the demand: more than any fleet carries."""

SAME_PARTS = 0.4
"""Of manifests: those with the parts of before."""

WAITS = 0.4
"""Of manifests with other parts: those whose rollouts wait for supply."""

MOST_PARTS = 4
"""Parts up to which one is added."""


class Manifests:
    """Manifests of one history. Without `counts` the newest one of each model is always in force."""

    def __init__(self, world: Any, random: Random, *, counts: bool) -> None:
        self.world, self.random, self.counts = world, random, counts
        self.kinds: dict[tuple[str, int], str] = {}
        self.parts: Random | None = None
        """Draws the parts of manifests; None: they stay."""
        self.known_parts: dict[tuple[str, str], PartSpec] = {}
        """(Model, name) -> a part that one of its manifests has or had."""

    def change_parts(self, random: Random) -> None:
        """From now on manifests add and remove parts."""
        self.parts = random

    def draw_parts(self, model: str, spec: Any) -> None:
        """Give the next manifest one part less or one more, or those of before; some wait for supply then."""
        if self.parts is None or self.parts.random() < SAME_PARTS:
            return
        spec.parts = self._other_parts(self.parts, model, spec.parts)
        if self.parts.random() < WAITS:
            spec.rollout = SimpleNamespace(**{**vars(spec.rollout), "when_short": "wait", "max_dip": 0.0})

    def _other_parts(self, random: Random, model: str, parts: tuple[PartSpec, ...]) -> tuple[PartSpec, ...]:
        named = {part.name for part in parts}
        removes = len(parts) > 1 and (len(parts) >= MOST_PARTS or random.random() < 0.5)
        if removes:
            self.world.count("manifest: removes a part")
            gone = random.choice(sorted(named))
            return tuple(part for part in parts if part.name != gone)
        self.world.count("manifest: adds a part")
        added = random.choice(sorted(set(PARTS) - named))
        known = {(model, part.name): part for part in self.world.scenario.models[model].manifest.spec.parts}
        if (model, added) not in self.known_parts | known:
            self.known_parts[model, added] = part_of(random, added, self.world.fleet.hardware)
        part = {**known, **self.known_parts}[model, added]
        return tuple(sorted((*parts, part), key=lambda found: found.name))

    def keep_parts(self, model: str, generation: int) -> None:
        """By the real function: a generation that serves keeps its hosted parts."""
        known = SimpleNamespace(name=model, in_force=self._record(model).in_force)
        change_end._keep_parts(cast("Any", self._store), cast("Any", known), generation)

    def kind(self, model: str, revision: int) -> str:
        """Draw what becomes of a revision."""
        if not self.counts:
            return USUAL
        kinds = KINDS if self.parts is None else USUALLY
        kind = self.kinds[model, revision] = self.random.choice(kinds)
        self.world.count(f"manifest: {kind}")
        return kind

    def further(self) -> Iterable[tuple[float, str, str]]:
        """What is asked besides: manifests, some with more after them. Each in so many seconds, with its model."""
        if not self.counts or self.random.random() < REST:
            return
        model = self.random.choice(sorted(self.world.journal.records))
        yield 0.0, "apply", model
        if self.parts is not None:
            yield from ((after, kind, model) for after, kind in self._afterwards(self.parts))
            return
        for kind in self.random.choice(AFTERWARDS):
            yield self.random.choice((0.0, 10.0, 40.0)) * self.random.random(), kind, model

    def _afterwards(self, random: Random) -> Iterable[tuple[float, str]]:
        """Draw what is asked after a manifest that may have other parts, one after another."""
        after = 0.0
        for kind in random.choice(AFTER_OTHER_PARTS):
            after += random.choice((0.0, 10.0, 40.0, 200.0)) * random.random()
            yield after, kind

    def serve_first(self, model: str) -> None:
        """The first manifest serves from the beginning."""
        if self.counts:
            store = self._store
            store.accept_revision(model, 1)
            store.put_in_force(model)
            self._record(model).observed = 1

    def validate(self, model: str, revision: int, generation: Generation, *, sound: bool) -> str:
        """Accept a revision, or tell why it is refused. `sound`: nothing is wrong with the snapshots."""
        if not self.counts:
            return "" if sound else "not finite"
        refused = self.kinds.get((model, revision)) == REFUSED
        lacking = _find_lacking(self._record(model).manifests[revision], generation)
        if sound and not refused and not lacking:
            self._store.accept_revision(model, revision)
            return ""
        self._store.refuse_revision(model, revision)
        if lacking:
            self.world.count("parts: one has no snapshot")
        return "the manifest is refused" if refused else lacking or "not finite"

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

    def end(self, change: Change, *, done: bool) -> Placement | None:
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

    def places_other_parts(self, model: str) -> bool:
        """By the real function: supply is kept for parts that the serving generation lacks."""
        return adoption.places_other_parts(cast("Any", self._store), model)

    def planned_wishes(self, model: str) -> ModelProblem:
        """By the real function: what a plan of the fleet places a model by."""
        record = self._record(model)
        if self.parts is None:
            return problems.model_problem(self.find_planned(record))
        seen = Plain(
            name=model,
            in_force=record.in_force,
            retired=record.retired,
            serving_generation=record.serving,
            refused_generation=record.refused,
            former=record.former,
        )
        placements = {model: record.placement} if record.placement else {}
        keeping = problems.keeping_parts(cast("Any", [seen]), cast("Any", placements))
        own = {name: (record.generations[number],) for name, number in keeping.items()}
        known = replan._without_moved(cast("Any", self.world.journal), cast("Any", [seen]))
        (found,) = problems.planned_models(self.world.fleet, known, cast("Any", placements), cast("Any", own))
        if known[0].former is not None and {part.part for part in found.parts} - _names(record.in_force):
            self.world.count("parts: a replan places those of two generations")
        return found

    def find_planned(self, record: Record) -> Any:
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
            serving_generation=record.serving,
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

    def as_measured(self, manifest: Any, _: int | None) -> Any:
        return manifest

    def generation(self, name: str, number: int) -> Generation:
        return cast("Generation", self.journal.records[name].generations[number])

    def set_hosting(self, name: str, number: int, hosting: Any) -> None:
        self.generation(name, number).hosting = hosting

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


def _find_lacking(manifest: Any, generation: Generation) -> str:
    """By the real check: the part of a manifest that a generation has no snapshot of."""
    torch = SimpleNamespace(manifest=SimpleNamespace(engine="torch"))
    candidate = SimpleNamespace(manifest=manifest, snapshots=dict.fromkeys(generation.parts, torch))
    return next((found.message for found in check_engines(cast("Any", candidate)) if not found.passed), "")


def _names(manifest: Any) -> set[str]:
    return {part.name for part in manifest.spec.parts}
