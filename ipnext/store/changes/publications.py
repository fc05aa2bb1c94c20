"""Publishing: snapshots, their generation and its change, in one unit of work."""

from collections.abc import Mapping
from typing import Final

from sqlmodel import col, select

from ipnext.errors import Conflict, DuplicateSnapshot, InvalidInput
from ipnext.model.lifecycle.changes.change import Change, ChangeKind
from ipnext.model.manifest.manifest import ModelManifest, ModelSpec
from ipnext.model.manifest.optimization import part_of, steps_digest
from ipnext.model.registry.optimization import Derivatives
from ipnext.model.registry.registry import GenerationState, SnapshotSource, SplitLayout
from ipnext.model.wire import decode
from ipnext.store.changes.changes import Changes, _change
from ipnext.store.registry.denials import Denials
from ipnext.store.registry.servings import Servings
from ipnext.store.tables.changes import ChangeRow
from ipnext.store.tables.registry import GenerationRow, ModelRow, SnapshotRow
from ipnext.store.unit_of_work import bytes_of, document, plain

_OVER: Final = frozenset(
    {GenerationState.REFUSED, GenerationState.FAILED, GenerationState.RETIRED, GenerationState.SUPERSEDED}
)
"""Generations whose snapshots may be published again: the cause of their failure may be gone. The newest one is
superseded by a retirement or a rollback."""


NAMED: Final = 3
"""Most digests, the newest, that an error names: a part may have thousands."""

LARGEST_MANIFESTS_BYTES: Final = 16 * 2**20
"""Largest manifests of one generation: some 70,000 files. One snapshot may have 4 MiB."""

LOOKED_AT: Final = 50
"""Most refused generations, the newest, that a publish checks for parts that it does not bring."""


class Publications(Servings, Denials, Changes):
    """The only writer of snapshots and generations."""

    def publish(self, model: str, parts: Mapping[str, SnapshotSource], *, change_id: str) -> Change:
        """Record new snapshots, their generation and the PUBLISH change; the same id again returns the recorded change.

        A part whose digest equals its newest snapshot's is reused. DuplicateSnapshot if every given part is reused and
        the newest generation serves, or may still serve, with the manifest's cut. For each part that is not given, the
        generation takes the newest snapshot that no validation has refused.

        NotFound if the model is unknown; InvalidInput for no part, an unknown part, or a part without any snapshot;
        Conflict if the model is retired or to be retired, or if the id belongs to another change.
        """
        row = self._writing_model(model)
        recorded = self._find_recorded(model, ChangeKind.PUBLISH, change_id)
        if recorded is not None:
            self._check_same_content(recorded, parts)
            return _change(recorded)
        spec = decode(ModelManifest, row.manifest).spec
        wanted = [part.name for part in spec.parts]
        newest = self._newest_snapshots(model)
        _check_in_service(row, self.open_retirement(model))
        _check_publishable(row, parts, wanted, newest)
        if self._newest_stands(model, spec):
            _check_new(row, parts, newest)
        if spec.split is not None:
            _check_whole(parts)
        self._check_derivable(spec, parts)
        self._check_parents(model, parts)
        numbers = {part: self._newest_usable(model, part, newest, parts) for part in wanted if part in newest}
        self._check_size(model, parts, {part: number for part, number in numbers.items() if part not in parts})
        for part, source in sorted(parts.items()):
            if part in newest and newest[part].digest == source.manifest.digest:
                self._keep_again(newest[part], source.manifest)
                if source.trained_at is not None:
                    self.note_trained(model, part, source.manifest.digest, source.trained_at)
                continue
            numbers[part] = self._next_snapshot(model, part)
            self._add_snapshot(model, part, source, number=numbers[part])
        generation = self._add_generation(model, numbers, spec.adapters)
        return self._record(model, ChangeKind.PUBLISH, change_id, generation=generation.number)

    def _check_size(self, model: str, given: Mapping[str, SnapshotSource], left_out: Mapping[str, int]) -> None:
        """Limit the size of a generation's manifests, which its workers have in memory. Raises InvalidInput."""
        size = sum(bytes_of(document(source.manifest)) for source in given.values())
        rows = (self._get(SnapshotRow, (model, part, number)) for part, number in left_out.items())
        size += sum(bytes_of(row.manifest) for row in rows if row is not None)
        if size > LARGEST_MANIFESTS_BYTES:
            msg = (
                f"parts: the manifests of the generation's snapshots would have {size} bytes together; allowed: "
                f"{LARGEST_MANIFESTS_BYTES}. Publish snapshots of fewer files"
            )
            raise InvalidInput(msg, field="parts", value=size, allowed=(f"at most {LARGEST_MANIFESTS_BYTES}",))

    def _newest_usable(
        self, model: str, part: str, newest: Mapping[str, SnapshotRow], given: Mapping[str, SnapshotSource]
    ) -> int:
        """Return a part's newest usable snapshot.

        If the part is not given, collected and denied snapshots, and those that a report names as refused, are skipped.
        """
        number = newest[part].number
        refused = frozenset[int]() if part in given else self._refused_snapshots(model, part)
        refused |= {n for of, n in self.collected_snapshots(model) if of == part and part not in given}
        refused |= {n for of, n in self.denied_snapshots(model) if of == part and part not in given}
        sound = (n for n in self._published_numbers(model, part) if n not in refused)
        return next(sound, number)

    def _refused_snapshots(self, model: str, part: str) -> frozenset[int]:
        """Return a part's snapshots that the validation of a generation has refused.

        The report names the part, or one of its files.
        """
        query = select(GenerationRow).where(
            GenerationRow.model == model, GenerationRow.state == GenerationState.REFUSED.value
        )
        found = set[int]()
        for row in self._session.exec(query.order_by(col(GenerationRow.number).desc()).limit(LOOKED_AT)):
            report = self.report(model, row.number)
            refused = report.refusal if report else None
            if refused is not None and refused.subject.partition("/")[0] == part:
                found.add(plain(row.snapshots).get(part, 0))
        return frozenset(found)

    def _newest_stands(self, model: str, spec: ModelSpec) -> bool:
        """Return whether the newest generation serves or may still serve, with the cut and pipeline of a manifest.

        The same bytes are nothing new then.
        """
        newest = self._get(GenerationRow, (model, self._last_generation(model)))
        if newest is None or GenerationState(newest.state) in _OVER:
            return False
        cut = None if newest.layout is None else decode(SplitLayout, newest.layout).cut
        steps = None if newest.derived is None else decode(Derivatives, newest.derived).steps
        return (spec.split.cut_digest if spec.split else None, steps_digest(spec.optimization)) == (cut, steps)

    def _check_derivable(self, spec: ModelSpec, parts: Mapping[str, SnapshotSource]) -> None:
        """Refuse deltas of a part with a pipeline: its steps derive from whole snapshots. Raises InvalidInput."""
        engines = {part.name: part.engine for part in spec.hosted_parts}
        for part in sorted({part_of(step, engines) for step in spec.optimization}):
            if part in parts and parts[part].manifest.is_delta:
                msg = (
                    f"parts.{part}: a delta cannot be optimized by spec.optimization; publish the full snapshot "
                    "(`ipnext delta --apply` writes it)"
                )
                raise InvalidInput(msg, field=f"parts.{part}", value=parts[part].manifest.digest)

    def _check_parents(self, model: str, parts: Mapping[str, SnapshotSource]) -> None:
        """Check that the parent of each delta is a snapshot of the same part with its bytes. Raises InvalidInput."""
        for part, source in sorted(parts.items()):
            if not source.manifest.is_delta:
                continue
            query = select(SnapshotRow.digest).where(
                SnapshotRow.model == model,
                SnapshotRow.part == part,
                col(SnapshotRow.collected_at).is_(None),
                col(SnapshotRow.derived_from).is_(None),
            )
            parent = query.where(SnapshotRow.digest == (source.manifest.parent or "")).limit(1)
            if self._session.exec(parent).first() is None:
                newest = self._session.exec(query.order_by(col(SnapshotRow.number).desc()).limit(NAMED)).all()
                msg = (
                    f"parts.{part}: a delta of snapshot {source.manifest.parent}, which {model}.{part} does not have; "
                    f"its newest: {', '.join(newest) or 'none'}. Publish the parent first, or a full snapshot"
                )
                raise InvalidInput(msg, field=f"parts.{part}", value=source.manifest.parent, allowed=newest)

    def _check_same_content(self, change: ChangeRow, parts: Mapping[str, SnapshotSource]) -> None:
        """Check that a repeated id has the same content: other bytes under the same id would be lost silently.

        Raises Conflict.
        """
        generation = self._generation_row(change.model, change.generation or 0)
        numbers = plain(generation.snapshots)
        for part, source in sorted(parts.items()):
            held = self._get(SnapshotRow, (change.model, part, numbers.get(part, 0)))
            if held is None or held.digest != source.manifest.digest:
                msg = f"change {change.id!r} published another content of part {part!r}; choose another id"
                raise Conflict(msg)


def _check_whole(parts: Mapping[str, SnapshotSource]) -> None:
    """Refuse deltas of a model that is cut by a policy: a delta has no program to cut. Raises InvalidInput."""
    for part, source in sorted(parts.items()):
        if source.manifest.is_delta:
            msg = (
                f"parts.{part}: a delta cannot be cut by spec.split; publish the full snapshot (`ipnext delta "
                "--apply` writes it)"
            )
            raise InvalidInput(msg, field=f"parts.{part}", value=source.manifest.digest)


def _check_in_service(row: ModelRow, retirement: Change | None) -> None:
    if row.retired:
        msg = f"model {row.name!r} is retired; apply its manifest again, then publish"
        raise Conflict(msg)
    if retirement is not None:
        msg = f"model {row.name!r} is to be retired by change {retirement.id}; a publish would bring it back"
        raise Conflict(msg)


def _check_publishable(
    row: ModelRow, parts: Mapping[str, SnapshotSource], wanted: list[str], newest: Mapping[str, SnapshotRow]
) -> None:
    if not parts:
        msg = f"parts: a publish brings at least one part of {wanted}"
        raise InvalidInput(msg, field="parts", allowed=wanted)
    for part in sorted(set(parts) - set(wanted)):
        msg = f"parts.{part}: model {row.name!r} has no such part; allowed: {', '.join(wanted)}"
        raise InvalidInput(msg, field=f"parts.{part}", value=part, allowed=wanted)
    gone = [part for part in wanted if part in newest and newest[part].collected_at is not None and part not in parts]
    if gone:
        msg = (
            f"parts: the bytes of the newest snapshot of {', '.join(gone)} of model {row.name!r} were "
            "collected; publish it "
            "again together with these"
        )
        raise InvalidInput(msg, field="parts", value=sorted(parts), allowed=wanted)
    lacking = [part for part in wanted if part not in newest and part not in parts]
    if lacking:
        msg = f"parts: {', '.join(lacking)} of model {row.name!r} has no snapshot yet; publish it together with these"
        raise InvalidInput(msg, field="parts", value=sorted(parts), allowed=wanted)


def _check_new(row: ModelRow, parts: Mapping[str, SnapshotSource], newest: Mapping[str, SnapshotRow]) -> None:
    same = [part for part, source in sorted(parts.items()) if _is_newest(newest.get(part), source)]
    if len(same) == len(parts):
        held = ", ".join(f"{part} snapshot {newest[part].number}" for part in same)
        msg = f"model {row.name!r} holds these bytes already as its newest: {held}; nothing to publish"
        raise DuplicateSnapshot(msg)


def _is_newest(held: SnapshotRow | None, source: SnapshotSource) -> bool:
    return held is not None and held.digest == source.manifest.digest
