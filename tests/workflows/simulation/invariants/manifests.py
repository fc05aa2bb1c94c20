"""In force and parts: the manifest that a change is planned by, and the parts of its generation."""

from typing import Any

from ipnext.model.lifecycle.changes.change import ChangeKind

from .report import Violated

ROLLS_OUT = frozenset({ChangeKind.PUBLISH, ChangeKind.APPLY})


class ManifestUse:
    """The manifests that changes and plans use."""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.succeeded: dict[str, int] = {}
        """Model -> revision of the manifest of the last rollout that succeeded."""
        self.adopted: dict[str, int] = {}
        """Change -> revision of the manifest that its placement was adopted by."""

    def adopt(self, change: Any, revision: int) -> None:
        """The unit of work that adopts the placement of a change: from then on its manifest may be carried out."""
        if change.kind in ROLLS_OUT:
            self.adopted[change.id] = revision

    def end(self, change: Any, *, done: bool) -> None:
        """The end of a change: its manifest is in force for good if it succeeded, else the one of before."""
        revision = self.adopted.pop(change.id, None)
        if done and revision is not None:
            self.succeeded[change.model] = revision

    def check_plan(self, model: str, manifest: Any) -> int:
        """A plan of the fleet takes no manifest that is not in force. Return the revision of the one that it takes."""
        record = self.world.journal.records[model]
        revision = next(number for number, known in record.manifests.items() if known is manifest)
        self._check_in_force(model, revision, f"a replan plans {model}")
        return revision

    def check_basis(self, change: Any, revision: int) -> None:
        """A change carries out its own manifest, or the one of what serves; a repair that of what serves alone."""
        told, model = f"{change.kind} {change.id}", change.model
        if change.kind in ROLLS_OUT:
            if self.world.manifests.counts and revision != self.adopted.get(change.id):
                raise Violated("in force", f"{told} carries out revision {revision}, not its own")
            return
        self._check_in_force(model, revision, told)
        record = self.world.journal.records[model]
        former = record.former
        waits = former is not None and former.plan_id == record.placement.plan_id and former.placement is not None
        fits = waits and not any(r.region in self.world.out.lost for r in former.placement.replicas if r.count)
        if change.kind is ChangeKind.REPAIR and fits and revision != self.succeeded.get(model, revision):
            raise Violated("in force", f"{told} carries out revision {revision} of a change that waits")

    def _check_in_force(self, model: str, revision: int, who: str) -> None:
        """One that a change was placed by which is open, or has succeeded as the last one."""
        if not self.world.manifests.counts or model not in self.succeeded:
            return
        journal = self.world.journal
        adopted = {number for name, number in self.adopted.items() if journal.by_id[name].model == model}
        wishes = self._demand_of(model, revision)
        if all(self._demand_of(model, number) != wishes for number in {self.succeeded[model], *adopted}):
            told = f"{who} carries out revision {revision}; {self.succeeded[model]} succeeded last"
            raise Violated("in force", told)

    def _demand_of(self, model: str, revision: int) -> dict[str, float]:
        """The demand of a revision of the manifest: two that want the same may share a placement."""
        return {item.region: item.qps for item in self.world.journal.records[model].manifests[revision].spec.demand}

    def check_lacking(self, change: Any, generation: Any, manifest: Any, told: str) -> None:
        """Parts: a generation is refused for one that nothing is placed for only if the manifest lost it before.

        The generation never served then.
        """
        named = {part.name for part in manifest.spec.parts}
        lost = change.kind in ROLLS_OUT and generation.serving_at is None and set(generation.parts) - named
        self.world.count("parts: refused for one that the manifest lost")
        if not lost:
            raise Violated("parts", f"{change.kind} {change.id}: {told}")

    def count_parts(self, change: Any, generation: int) -> None:
        """Count how a model comes to other parts, or keeps those that its manifest lost."""
        record = self.world.journal.records[change.model]
        parts = set(record.generations[generation].parts)
        before = set(record.generations[record.serving].parts) if record.serving else parts
        if before != parts:
            self.world.count(f"parts: {change.kind} to {'fewer' if parts < before else 'other'} ones")
        if parts - {part.name for part in record.in_force.spec.parts}:
            self.world.count(f"parts: {change.kind} of one that the manifest lost")

    def check_rest(self, model: str, record: Any) -> None:
        """At rest the manifest in force is that of the last rollout that succeeded."""
        if not self.world.manifests.counts or record.retired or model not in self.succeeded:
            return
        if record.former is not None or record.revision_in_force != self.succeeded[model]:
            told = f"revision {record.revision_in_force} of {model} is in force; {self.succeeded[model]} succeeded last"
            raise Violated("in force", told)
