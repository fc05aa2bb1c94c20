"""Retention of snapshots: what needs them, holds, and the release of their bytes.

A release marks the row, in a unit of work of the model, after it has read again what needs the snapshot. The row stays:
numbers are never reused, and the history names them. A collection of the artifact store removes the bytes later.
"""

import json
import re
from collections import defaultdict
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Final

from sqlalchemy import and_, bindparam, case, delete, func, or_, select, tuple_, update

from ipnext.errors import Conflict, NotFound
from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.model.manifest.durations import parse_duration
from ipnext.model.manifest.retention import RetentionSpec
from ipnext.model.registry.optimization import Derivatives
from ipnext.model.registry.registry import GenerationState, Signature, Snapshot, SnapshotManifest, SplitLayout
from ipnext.model.registry.retention import (
    Keep,
    Key,
    SnapshotKeep,
    SnapshotLine,
    SnapshotNeeds,
    SnapshotRule,
    Unneeded,
)
from ipnext.model.registry.sources import FoundVersion, VersionState
from ipnext.model.wire import decode, decode_frozen
from ipnext.store.records import SnapshotHold
from ipnext.store.registry.artifacts import Artifacts, Place
from ipnext.store.registry.generations import GENERATIONS, REPORT, REPORT_IS, REPORTS
from ipnext.store.registry.snapshots import SNAPSHOT_IS, SNAPSHOTS
from ipnext.store.tables.changes import ChangeRow, DeploymentRow, RouteShareRow
from ipnext.store.tables.registry import ModelRow, SnapshotHoldRow, SourceVersionRow
from ipnext.store.tables.row import METADATA
from ipnext.store.unit_of_work import batches, bytes_of, document, plain

LARGEST_KEPT_BYTES: Final = 16 * 2**10
"""Largest manifest kept in the database once its snapshot was released: most manifests are below it."""

_MODELS = METADATA.tables[ModelRow.__tablename__]
_CHANGES = METADATA.tables[ChangeRow.__tablename__]
_DEPLOYMENTS = METADATA.tables[DeploymentRow.__tablename__]
_SHARES = METADATA.tables[RouteShareRow.__tablename__]
_HOLDS = METADATA.tables[SnapshotHoldRow.__tablename__]
_VERSIONS = METADATA.tables[SourceVersionRow.__tablename__]

_MAY_SERVE: Final = tuple(
    state.value
    for state in (
        GenerationState.SERVING,
        GenerationState.WARM,
        GenerationState.ROLLING_OUT,
        GenerationState.VALIDATED,
        GenerationState.PENDING,
    )
)
"""States of generations that serve, are loaded, or are on their way to serve."""

_REACHABLE: Final = (GenerationState.SERVING.value, GenerationState.WARM.value, GenerationState.RETIRED.value)
"""States of generations that have served and that a rollback may name."""

_OPEN_CHANGES: Final = tuple(state.value for state in ChangeState if not state.final)
_OPEN_VERSIONS: Final = (VersionState.HELD.value, VersionState.FOUND.value)
_STORED: Final = re.compile(r"/snapshots/([0-9a-f]{64})$")
"""The place of a version that was uploaded to the artifact store."""

_LINE = (
    SNAPSHOTS.c.model,
    SNAPSHOTS.c.part,
    SNAPSHOTS.c.number,
    SNAPSHOTS.c.digest,
    case((SNAPSHOTS.c.is_delta, SNAPSHOTS.c.parent), else_=None).label("parent"),
    SNAPSHOTS.c.created_at,
    SNAPSHOTS.c.served_at,
    SNAPSHOTS.c.size_bytes,
    SNAPSHOTS.c.derived_from.is_not(None).label("is_derived"),
)
_KEPT = SNAPSHOTS.c.collected_at.is_(None)
_PLACE = tuple_(SNAPSHOTS.c.model, SNAPSHOTS.c.part, SNAPSHOTS.c.number)
_GENERATION = (
    GENERATIONS.c.model,
    GENERATIONS.c.number,
    GENERATIONS.c.snapshots,
    GENERATIONS.c.derived,
    GENERATIONS.c.layout,
)


@dataclass(frozen=True, slots=True)
class UnneededSnapshots:
    """Snapshots of one model that nothing needs, with what was read to decide it."""

    needs: SnapshotNeeds
    found: tuple[Unneeded, ...]


class Retention(Artifacts):
    """Holds, and the release of snapshots that nothing needs."""

    def models_after(self, after: str, *, limit: int) -> tuple[str, ...]:
        """Return the first models after a name, retired ones included."""
        query = select(_MODELS.c.name).where(_MODELS.c.name > after).order_by(_MODELS.c.name).limit(limit)
        return tuple(self._run(query).scalars())

    def unneeded_snapshots(
        self, models: Collection[str], rule: SnapshotRule, keep: SnapshotKeep
    ) -> Mapping[str, UnneededSnapshots]:
        """Map each of these models that has some to its unneeded snapshots.

        `keep` is the platform's; a model's own `spec.retention` comes before it.
        """
        models = self._models_due(models, rule, keep)
        needs = self.snapshot_needs(models, keep)
        lines: dict[str, list[SnapshotLine]] = defaultdict(list)
        for row in self._run(select(*_LINE).where(self._among(SNAPSHOTS.c.model, models), _KEPT)):
            lines[row.model].append(_line(row))
        chosen = {model: rule.choose(lines[model], needs[model]) for model in sorted(lines)}
        return {model: UnneededSnapshots(needs[model], found) for model, found in chosen.items() if found}

    def _models_due(self, models: Collection[str], rule: SnapshotRule, keep: SnapshotKeep) -> tuple[str, ...]:
        """Return those of these models of which age and place let a snapshot go, and perhaps some more."""
        query = select(_MODELS.c.name, _MODELS.c.retired, _MODELS.c.retention).where(
            self._among(_MODELS.c.name, models)
        )
        rows = self._run(query).all()
        keeps = [_keep_of(row.retention, keep).snapshots for row in rows]
        count = min((one.count for one in keeps), default=0)
        age = min((one.age for one in keeps), default=rule.unserved)
        of = SNAPSHOTS.c
        unserved = func.sum(case((and_(of.served_at.is_(None), of.created_at < rule.now - rule.unserved), 1), else_=0))
        used = func.min(func.coalesce(of.served_at, of.created_at))
        due = or_(unserved > 0, and_(func.count() > count, used < rule.now - age))
        parts = select(of.model).where(self._among(of.model, models), _KEPT).group_by(of.model, of.part)
        found = set(self._run(parts.having(and_(func.count() > 1, due))).scalars())
        return tuple(sorted(found | {row.name for row in rows if row.retired}))

    def snapshot_needs(self, models: Collection[str], keep: SnapshotKeep) -> Mapping[str, SnapshotNeeds]:
        """Return what needs snapshots of these models: a few statements, whatever the number of models."""
        rows = {row.name: row for row in self._run(select(_MODELS).where(self._among(_MODELS.c.name, models)))}
        kept = {name: _keep_of(row.retention, keep) for name, row in rows.items()}
        named: dict[str, dict[Key, str]] = {name: {} for name in rows}
        for model, key, reason in self._names(rows, kept):
            named[model].setdefault(key, reason)
        digests: dict[str, dict[str, str]] = {name: {} for name in rows}
        for model, digest, reason in self._waiting_digests(models):
            digests[model].setdefault(digest, reason)
        return {
            name: SnapshotNeeds(
                keep=kept[name],
                retired_at=row.updated_at if row.retired else None,
                named=named[name],
                digests=digests[name],
            )
            for name, row in rows.items()
        }

    def release_unneeded(
        self, chosen: Mapping[str, UnneededSnapshots], keep: SnapshotKeep
    ) -> tuple[tuple[str, Unneeded], ...]:
        """Release snapshots of the models that this unit may write, as far as nothing needs them now.

        Returns (model, snapshot). What needs them is read again; one that was changed since it was read stays.
        """
        own = {model: found for model, found in chosen.items() if self.scope is None or model in self.scope}
        needs = self.snapshot_needs(tuple(own), keep)
        same = {
            model: found.found
            for model, found in own.items()
            if (needs[model].keep, needs[model].retired_at) == (found.needs.keep, found.needs.retired_at)
        }
        free = self._still_free(same, needs)
        with self._bookkeeping():
            self._release([(model, *one.line.key) for model, one in free])
        return free

    def delete_snapshot(self, model: str, part: str, number: int, *, keep: SnapshotKeep) -> Snapshot:
        """Release a snapshot that nothing needs, whatever its age. Its row stays.

        NotFound; Conflict names what needs it, or says that it was released before.
        """
        self._writing_model(model)
        snapshot = self.snapshot(model, part, number)
        line = self._lines([(model, part, number)]).get((model, part, number))
        if line is None:
            msg = f"snapshot {number} of part {part!r} of model {model!r} was deleted before"
            raise Conflict(msg)
        needs = self.snapshot_needs((model,), keep)
        why = self._explain_needs({(model, part, number): line}, needs).get((model, part, number))
        if why is not None:
            msg = f"snapshot {number} of part {part!r} of model {model!r} is needed: {why}"
            raise Conflict(msg)
        self.release_snapshots(model, [(part, number)])
        return snapshot

    def release_snapshots(self, model: str, snapshots: Collection[Key]) -> None:
        """Allow a collection to take the bytes of these snapshots.

        If a manifest has more than LARGEST_KEPT_BYTES, the database keeps only its engine and parent. The validation
        reports of generations with them are deleted: these can't serve again.
        """
        self._writing(model)
        self._release([(model, *key) for key in snapshots])

    def _release(self, places: Sequence[Place]) -> None:
        if not places:
            return
        now = self._now()
        given = [{"of_model": m, "of_part": p, "of_number": n, "collected_at": now} for m, p, n in sorted(places)]
        self._connection.execute(SNAPSHOT_IS, given)
        self._forget_read()
        self._cut_manifests(places)
        self._drop_reports(places)

    # holds

    def hold_snapshot(self, model: str, part: str, number: int, *, by: str, reason: str) -> SnapshotHold:
        """Hold a snapshot: it is not collected until the hold is released. A held one gets the newest reason.

        NotFound; Conflict if its bytes were released before.
        """
        self._writing_model(model)
        self.snapshot(model, part, number)
        if (part, number) in self.collected_snapshots(model):
            msg = f"snapshot {number} of part {part!r} of model {model!r} was collected: publish it again to hold it"
            raise Conflict(msg)
        row = self._get(SnapshotHoldRow, (model, part, number))
        if row is None:
            row = SnapshotHoldRow(
                model=model, part=part, number=number, reason=reason, held_by=by, created_at=self._now()
            )
        row.reason, row.held_by = reason, by
        self._add(row)
        return _hold(row)

    def release_hold(self, model: str, part: str, number: int) -> SnapshotHold:
        """End the hold of a snapshot and return it. NotFound if it is not held."""
        self._writing_model(model)
        row = self._get(SnapshotHoldRow, (model, part, number))
        if row is None:
            msg = f"snapshot {number} of part {part!r} of model {model!r} is not held"
            raise NotFound(msg)
        found = _hold(row)
        self._session.delete(row)
        self._session.flush()
        return found

    # what needs a snapshot

    def _still_free(
        self, found: Mapping[str, Sequence[Unneeded]], needs: Mapping[str, SnapshotNeeds]
    ) -> tuple[tuple[str, Unneeded], ...]:
        """Return those of these snapshots that are as they were read, and that nothing needs."""
        asked = {(model, *one.line.key): one for model, each in found.items() for one in each}
        now = self._lines(asked)
        free = {place: one.line for place, one in asked.items() if now.get(place) == one.line}
        needed = self._explain_needs(free, needs)
        return tuple((place[0], asked[place]) for place in free if place not in needed)

    def _lines(self, places: Collection[Place]) -> Mapping[Place, SnapshotLine]:
        """Return those of these snapshots whose bytes are kept."""
        query = select(*_LINE).where(_KEPT)
        rows = (row for some in batches(places) for row in self._run(query.where(_PLACE.in_(some))))
        return {(row.model, row.part, row.number): _line(row) for row in rows}

    def _explain_needs(
        self, lines: Mapping[Place, SnapshotLine], needs: Mapping[str, SnapshotNeeds]
    ) -> Mapping[Place, str]:
        """Map each of these snapshots that something needs, but for the others of them, to the reason."""
        found = {
            place: reason
            for place, line in lines.items()
            if (reason := needs[place[0]].named.get(line.key) or needs[place[0]].digests.get(line.digest))
        }
        for place in self._newest_of({(model, part) for model, part, _ in lines}):
            if place in lines and needs[place[0]].retired_at is None:
                found.setdefault(place, "it is the newest of its part, which a publish of another part takes")
        deltas = self._deltas_of(lines)
        while True:
            more = {
                place: f"snapshot {child[2]} is a delta of it"
                for child, place in deltas
                if place not in found and (child not in lines or child in found)
            }
            if not more:
                return found
            found |= more

    def _newest_of(self, parts: Collection[tuple[str, str]]) -> Iterator[Place]:
        """Yield the newest published snapshot with its bytes of each of these parts."""
        published = SNAPSHOTS.c.derived_from.is_(None)
        number = select(SNAPSHOTS.c.number).where(_KEPT, published).order_by(SNAPSHOTS.c.number.desc()).limit(1)
        number = number.where(SNAPSHOTS.c.model == bindparam("of_model"), SNAPSHOTS.c.part == bindparam("of_part"))
        for model, part in sorted(parts):
            newest = self._run(number, of_model=model, of_part=part).scalar()
            if newest is not None:
                yield model, part, newest

    def _deltas_of(self, lines: Mapping[Place, SnapshotLine]) -> Sequence[tuple[Place, Place]]:
        """Return (delta, its parent) of the deltas of these snapshots whose bytes are kept."""
        parents = {
            (model, line.part, line.digest): (model, part, number) for (model, part, number), line in lines.items()
        }
        of = tuple_(SNAPSHOTS.c.model, SNAPSHOTS.c.part, SNAPSHOTS.c.parent)
        query = select(*_LINE).where(_KEPT, SNAPSHOTS.c.is_delta)
        rows = [row for some in batches(parents) for row in self._run(query.where(of.in_(some)))]
        return [((row.model, row.part, row.number), parents[row.model, row.part, row.parent]) for row in rows]

    def _names(self, rows: Mapping[str, Any], kept: Mapping[str, SnapshotKeep]) -> Iterator[tuple[str, Key, str]]:
        """Yield model, snapshot and reason of all that names a snapshot."""
        models = tuple(rows)
        for row in self._run(select(_HOLDS).where(self._among(_HOLDS.c.model, models))):
            yield row.model, (row.part, row.number), f"held by {row.held_by}: {row.reason}"
        of = (_DEPLOYMENTS.c.model, _DEPLOYMENTS.c.part, _DEPLOYMENTS.c.region, _DEPLOYMENTS.c.deployment)
        for row in self._run(select(*of).where(self._among(_DEPLOYMENTS.c.model, models))):
            for held in json.loads(row.deployment)["holds"]:
                yield row.model, (held["part"] or row.part, held["snapshot"]), f"deployed in {row.region}"
        reasons = self._numbered(rows)
        for row in self._run(select(*_GENERATION, GENERATIONS.c.state).where(_may_serve(self, models))):
            for key in _keys(row):
                yield row.model, key, f"generation {row.number} is {row.state}"
        for row in self._served(models, most=max((one.rollbacks for one in kept.values()), default=0)):
            if row.rank <= kept[row.model].rollbacks:
                for key in _keys(row):
                    yield row.model, key, f"generation {row.number} can be rolled back to"
        place = tuple_(GENERATIONS.c.model, GENERATIONS.c.number)
        for some in batches(reasons):
            for row in self._run(select(*_GENERATION).where(place.in_(some))):
                for key in _keys(row):
                    yield row.model, key, reasons[row.model, row.number]

    def _numbered(self, rows: Mapping[str, Any]) -> dict[tuple[str, int], str]:
        """Return (model, generation) -> what names the generation: the model, an open change, a route."""
        models, found = tuple(rows), dict[tuple[str, int], str]()
        for name, row in rows.items():
            if row.serving_generation is not None:
                found[name, row.serving_generation] = f"generation {row.serving_generation} serves"
            if row.target_generation is not None:
                found[name, row.target_generation] = f"generation {row.target_generation} is to serve"
        changes = select(_CHANGES.c.model, _CHANGES.c.generation, _CHANGES.c.id).where(
            self._among(_CHANGES.c.model, models),
            _CHANGES.c.state.in_(_OPEN_CHANGES),
            _CHANGES.c.generation.is_not(None),
        )
        for row in self._run(changes):
            found.setdefault((row.model, row.generation), f"change {row.id} goes to generation {row.generation}")
        shares = select(_SHARES.c.model, _SHARES.c.generation, _SHARES.c.region)
        for row in self._run(shares.where(self._among(_SHARES.c.model, models))):
            found.setdefault((row.model, row.generation), f"generation {row.generation} answers users in {row.region}")
        return found

    def _served(self, models: Collection[str], *, most: int) -> Any:
        """Return the newest generations that have served, with their rank from 1."""
        rank = func.row_number().over(partition_by=GENERATIONS.c.model, order_by=GENERATIONS.c.number.desc())
        served = select(*_GENERATION, rank.label("rank")).where(
            self._among(GENERATIONS.c.model, models),
            GENERATIONS.c.serving_at.is_not(None),
            GENERATIONS.c.state.in_(_REACHABLE),
        )
        ranked = served.subquery()
        return self._run(select(ranked).where(ranked.c.rank <= most))

    def _waiting_digests(self, models: Collection[str]) -> Iterator[tuple[str, str, str]]:
        """Yield model, digest and reason of what versions of sources that are still to be published need."""
        query = select(_VERSIONS).where(self._among(_VERSIONS.c.model, models), _VERSIONS.c.state.in_(_OPEN_VERSIONS))
        for row in self._run(query):
            version = decode(FoundVersion, row.version)
            reason = f"version {version.key} of source {row.source} is {row.state}"
            for digest in (stored_digest(version), row.digest, row.parent):
                if digest is not None:
                    yield row.model, digest, reason

    def waiting_digests(self) -> frozenset[str]:
        """Return the digests of snapshots, in the artifact store, of versions that are still to be published."""
        query = select(_VERSIONS.c.version, _VERSIONS.c.digest).where(_VERSIONS.c.state.in_(_OPEN_VERSIONS))
        found = set[str | None]()
        for row in self._run(query):
            found |= {row.digest, stored_digest(decode(FoundVersion, row.version))}
        return frozenset(digest for digest in found if digest is not None)

    # release

    def _cut_manifests(self, places: Collection[Place]) -> None:
        """Keep little of the large manifests of released snapshots, and count it."""
        large = select(SNAPSHOTS.c.model, SNAPSHOTS.c.part, SNAPSHOTS.c.number, SNAPSHOTS.c.manifest).where(
            func.length(SNAPSHOTS.c.manifest) > LARGEST_KEPT_BYTES // 4
        )
        for row in [row for some in batches(places) for row in self._run(large.where(_PLACE.in_(some)))]:
            if bytes_of(row.manifest) <= LARGEST_KEPT_BYTES:
                continue
            kept = document(_bare(decode(SnapshotManifest, row.manifest)))
            self._write(SNAPSHOT_IS, of_model=row.model, of_part=row.part, of_number=row.number, manifest=kept)
            self._count_documents(row.model, bytes_of(kept) - bytes_of(row.manifest))

    def _drop_reports(self, places: Collection[Place]) -> None:
        """Delete the reports of generations with these snapshots, and count them no more."""
        released: dict[str, set[Key]] = defaultdict(set)
        for model, part, number in places:
            released[model].add((part, number))
        joined = REPORTS.join(
            GENERATIONS,
            and_(REPORTS.c.model == GENERATIONS.c.model, REPORTS.c.generation == GENERATIONS.c.number),
        )
        query = select(REPORTS.c.model, GENERATIONS.c.number, GENERATIONS.c.snapshots).select_from(joined)
        for row in self._run(query.where(self._among(REPORTS.c.model, list(released)))).all():
            if not released[row.model] & set(plain(row.snapshots).items()):
                continue
            of = {"of_model": row.model, "of_generation": row.number}
            text = self._run(REPORT, **of).scalar_one()
            self._write(delete(REPORTS).where(*REPORT_IS), **of)
            self._count_documents(row.model, -bytes_of(text))

    def set_origin(self, model: str, part: str, number: int, origin: str) -> None:
        """Note the version of a source that a snapshot was published from, as a document."""
        self._writing(model)
        of = (SNAPSHOTS.c.model == model, SNAPSHOTS.c.part == part, SNAPSHOTS.c.number == number)
        before = self._run(select(SNAPSHOTS.c.origin).where(*of)).scalar()
        self._write(update(SNAPSHOTS).where(*of).values(origin=origin))
        self._count_documents(model, bytes_of(origin) - bytes_of(before or ""))


def _line(row: Any) -> SnapshotLine:
    return SnapshotLine._make(tuple(row)[1:])


def stored_digest(version: FoundVersion) -> str | None:
    """Return the digest of a version that was uploaded to the artifact store; None if its place is elsewhere."""
    found = _STORED.search(version.place)
    return None if found is None else found[1]


def _may_serve(unit: Retention, models: Collection[str]) -> Any:
    return and_(unit._among(GENERATIONS.c.model, models), GENERATIONS.c.state.in_(_MAY_SERVE))  # noqa: SLF001 - of this module


def _keys(row: Any) -> set[Key]:
    """Return the snapshots of a generation, with what was derived from them and the segments of a cut one."""
    found = set(plain(row.snapshots).items())
    if row.derived is not None:
        found |= decode_frozen(Derivatives, row.derived).named
    if row.layout is not None:
        found |= decode_frozen(SplitLayout, row.layout).named
    return found


def _keep_of(text: str | None, keep: SnapshotKeep) -> SnapshotKeep:
    """Return a model's retention: its own, and the platform's for what it does not set."""
    if text is None:
        return keep
    own = decode_frozen(RetentionSpec, text)
    count, age = own.snapshots.count, own.snapshots.age
    snapshots = Keep(
        keep.snapshots.count if count is None else count,
        keep.snapshots.age if age is None else parse_duration(age),
    )
    return SnapshotKeep(snapshots, keep.rollbacks if own.rollbacks is None else own.rollbacks)


def _hold(row: SnapshotHoldRow) -> SnapshotHold:
    return SnapshotHold(
        model=row.model,
        part=row.part,
        number=row.number,
        reason=row.reason,
        held_by=row.held_by,
        created_at=row.created_at,
    )


def _bare(manifest: SnapshotManifest) -> SnapshotManifest:
    """Return the stored remainder of a manifest whose snapshot can't be loaded any more."""
    return SnapshotManifest(
        engine=manifest.engine[:100], signature=Signature(inputs=(), outputs=()), files=(), parent=manifest.parent
    )
