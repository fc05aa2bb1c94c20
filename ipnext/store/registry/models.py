"""The fleet and the models, as applied."""

from collections.abc import Collection, Mapping
from types import EllipsisType
from typing import Any

from sqlalchemy import bindparam
from sqlalchemy import select as sa_select
from sqlalchemy import update as sa_update
from sqlmodel import col, func, select

from ipnext.errors import NotFound, StaleWrite
from ipnext.model.access.predictions import listed_access, listed_bytes
from ipnext.model.fleet import FleetSpec
from ipnext.model.manifest.manifest import DemandItem, ModelManifest, ModelSpec
from ipnext.model.manifest.retention import RetentionSpec
from ipnext.model.throughput import TOKENS
from ipnext.model.wire import decode_frozen, decode_plain
from ipnext.store.records import FleetRecord, FormerBasis, JudgedSpec, ModelPlacement, ModelRecord
from ipnext.store.registry.labels import Labels
from ipnext.store.registry.servings import Servings
from ipnext.store.tables.registry import FleetRow, ModelRow
from ipnext.store.tables.row import METADATA
from ipnext.store.unit_of_work import (
    MODELS,
    NAMED_IN_ERRORS,
    batches,
    bytes_of,
    document,
    format_known,
    plain,
)

THE_FLEET = 1

_OWNER = sa_select(MODELS.c.owner).where(MODELS.c.name == bindparam("name"))
_ONE = sa_select(MODELS).where(MODELS.c.name == bindparam("name"))
_ONE_IS = sa_update(MODELS).where(MODELS.c.name == bindparam("of_name"))
_DOCUMENTS = sa_select(MODELS.c.document_bytes).where(MODELS.c.name == bindparam("name"))
_FLEET = sa_select(METADATA.tables[FleetRow.__tablename__])


class Models(Servings, Labels):
    """Fleet and models. `version` guards users' writes; the platform's observations do not change it."""

    def fleet(self) -> FleetRecord:
        """Return the fleet as applied. NotFound before the first."""
        found = self._fleet()
        if found is None:
            msg = "no fleet is applied yet; apply a manifest of kind: Fleet first"
            raise NotFound(msg)
        return found

    def unit_memory(self) -> Mapping[str, int]:
        """Map each hardware kind to the memory of one unit, as far as the fleet tells it."""
        found = self._fleet()
        return {} if found is None else found.spec.memory_bytes

    def region_names(self) -> tuple[str, ...]:
        """Return the regions of the fleet in its order; none before the first fleet is applied."""
        found = self._fleet()
        return () if found is None else tuple(found.spec.regions)

    def _fleet(self) -> FleetRecord | None:
        def read() -> FleetRecord | None:
            row = self._run(_FLEET).first()
            return None if row is None else _fleet(row)

        return self._once("fleet", read)

    def put_fleet(self, spec: FleetSpec, *, expected_version: int | None) -> FleetRecord:
        """Create or replace the fleet; an equal one stays unchanged.

        `expected_version` is the version that the caller read, 0 if there was none; StaleWrite on another. None: any.
        """
        self._writing(None)
        row = self._get(FleetRow, THE_FLEET)
        _check_version("the fleet", row.version if row else 0, expected_version)
        text = document(spec)
        if row is None:
            row = FleetRow(id=THE_FLEET, spec=text, version=1, updated_at=self._now())
        elif row.spec != text:
            row.spec, row.version, row.updated_at = text, row.version + 1, self._now()
        self._add(row)
        return _fleet(row)

    def put_model(self, manifest: ModelManifest, *, expected_version: int | None) -> ModelRecord:
        """Create or replace a model; a retired one is restored. The same manifest leaves the record unchanged.

        The generation (the manifest's revision) rises by one if the spec changed, the version with every change.
        `expected_version` is the version that the caller read, 0 if there was none; StaleWrite on another. None: any.
        """
        name = manifest.name
        self._writing(name)
        row = self._get(ModelRow, name)
        _check_version(f"model {name!r}", row.version if row else 0, expected_version)
        if row is None:
            row = self._new_model(manifest)
        elif row.retired or row.manifest != document(manifest):
            former = decode_frozen(ModelManifest, row.manifest).spec
            changed = document(former) != document(manifest.spec)
            text, before = document(manifest), bytes_of(row.manifest)
            row.document_bytes = max(0, row.document_bytes - before) + bytes_of(text)
            row.manifest, row.owner = text, manifest.metadata.owner
            row.retention = _retention(manifest)
            row.access_bytes = _access_bytes(manifest, retired=False)
            if changed:
                row.validated, row.accepted = _keeping(row.validated, former), _keeping(row.accepted, former)
                row.generation += 1
            row.retired = False
            row.version += 1
            row.updated_at = self._now()
        self._add(row)
        self._set_targets(name, manifest.spec)
        self._put_labels("Model", name, manifest.metadata.labels)
        return _model(row)

    def _new_model(self, manifest: ModelManifest) -> ModelRow:
        now, text = self._now(), document(manifest)
        return ModelRow(
            name=manifest.name,
            manifest=text,
            document_bytes=bytes_of(text),
            access_bytes=_access_bytes(manifest, retired=False),
            owner=manifest.metadata.owner,
            retention=_retention(manifest),
            generation=1,
            observed_generation=0,
            version=1,
            created_at=now,
            updated_at=now,
        )

    def model(self, name: str) -> ModelRecord:
        """Return one model, retired or not. NotFound names known ones."""
        record = self._once(("model", name), lambda: self._read_model(name))
        if name in self._by_former and record.former is not None:
            return record.model_copy(update={"accepted": record.former.accepted})
        return record

    def go_by_former(self, name: str) -> None:
        """Read the model in this unit of work by the manifest and the placement that its open change found.

        For a change that moves what serves while the open one waits. Nothing is written.
        """
        self._by_former.add(name)

    def _read_model(self, name: str) -> ModelRecord:
        row = self._run(_ONE, name=name).first()
        if row is None:
            raise self._no_model(name)
        self._known_models.add(name)
        return _model(row)

    def find_model(self, name: str) -> ModelRecord | None:
        """Return one model, retired or not; None if there is none of that name."""
        return self._once(("found model", name), lambda: _decode_row(self._run(_ONE, name=name).first()))

    def owner_of(self, name: str) -> str | None:
        """Return the owner of a model, retired or not; None if the model is unknown."""
        return self._run(_OWNER, name=name).scalar()

    def owners(self) -> tuple[str, ...]:
        """Return the owners of models, retired ones included, by name."""
        return tuple(sorted(self._session.exec(select(ModelRow.owner).distinct())))

    def names_of_owners(self, owners: Collection[str]) -> tuple[str, ...]:
        """Return the models of these owners, retired ones included."""
        return tuple(self._session.exec(select(ModelRow.name).where(self._among(col(ModelRow.owner), owners))))

    def owners_of(self, names: Collection[str]) -> Mapping[str, str]:
        """Map each known one of these models to its owner."""
        query = select(ModelRow.name, ModelRow.owner)
        return {
            name: owner
            for some in batches(names)
            for name, owner in self._session.exec(query.where(self._among(col(ModelRow.name), some)))
        }

    def models(self) -> tuple[ModelRecord, ...]:
        """Return all models, retired ones included, by name."""
        records = [_model(row) for row in self._session.exec(select(ModelRow))]
        return tuple(sorted(records, key=lambda record: record.name))

    def demands(self, names: Collection[str]) -> Mapping[str, Mapping[str, float]]:
        """Map each of these models to the demand of each users' region, in the model's unit.

        Nothing else of a manifest is read.
        """
        query = select(ModelRow.name, ModelRow.manifest)
        found = (
            row
            for some in batches(names)
            for row in self._session.exec(query.where(self._among(col(ModelRow.name), some)))
        )
        return {
            name: {
                item.region: item.amount
                for item in (decode_plain(DemandItem, demand) for demand in plain(text)["spec"]["demand"])
            }
            for name, text in found
        }

    def signer_keys(self) -> tuple[tuple[str, str, tuple[str, ...]], ...]:
        """Return name, owner and public keys (PEM) of each model that names signers."""
        query = select(ModelRow.name, ModelRow.owner, ModelRow.manifest).where(
            col(ModelRow.manifest).contains("publicKeys")
        )
        found = ((name, owner, decode_frozen(ModelManifest, text)) for name, owner, text in self._session.exec(query))
        return tuple(
            (name, owner, manifest.spec.validation.signers.public_keys)
            for name, owner, manifest in found
            if manifest.spec.validation.signers is not None
        )

    def manifests_basis(self) -> tuple[int, int]:
        """Return the number of manifests and the sum of their versions.

        They change with any manifest, since versions only rise.
        """
        count, versions = self._session.exec(select(func.count(), func.coalesce(func.sum(ModelRow.version), 0))).one()
        return count, int(versions)

    def models_in_tokens(self, names: Collection[str]) -> frozenset[str]:
        """Return those of these models whose demand is in tokens per second."""
        query = select(ModelRow.name, ModelRow.manifest)
        rows = (
            row
            for some in batches(names)
            for row in self._session.exec(query.where(self._among(col(ModelRow.name), some)))
        )
        found = ((name, decode_frozen(ModelManifest, text)) for name, text in rows)
        return frozenset(name for name, manifest in found if manifest.spec.unit == TOKENS)

    def update_model(
        self,
        name: str,
        *,
        serving_generation: int | EllipsisType | None = ...,
        target_generation: int | EllipsisType | None = ...,
        observed_generation: int | EllipsisType = ...,
        refused_generation: int | EllipsisType | None = ...,
        retired: bool | EllipsisType = ...,
    ) -> ModelRecord:
        """Write the platform's observations of a model, or its retirement; omitted fields stay. Raises NotFound."""
        self._writing(name)
        record = self.model(name)
        told = {
            "serving_generation": serving_generation,
            "target_generation": target_generation,
            "observed_generation": observed_generation,
            "refused_generation": refused_generation,
            "retired": retired,
        }
        said: dict[str, Any] = {
            field: value
            for field, value in told.items()
            if not isinstance(value, EllipsisType) and value != getattr(record, field)
        }
        if not said:
            return record
        said["updated_at"] = self._now()
        more: dict[str, Any] = {}
        if "retired" in said:
            said["version"] = record.version + 1
            more["access_bytes"] = _access_bytes(record.manifest, retired=said["retired"])
        self._write(_ONE_IS, of_name=name, **said, **more)
        return record.model_copy(update=said)

    def accept_revision(self, name: str, revision: int, spec: ModelSpec) -> None:
        """Record that a validation accepted a revision of the manifest, with this spec.

        It is in force once a change is planned by it.
        """
        record = self.model(name)
        refused, known = record.refused_generation, record.validated
        if refused is not None and refused <= revision:
            self.update_model(name, refused_generation=None)
        if known is None or known.revision < revision:
            held = None if record.generation == revision else spec
            self._judge(name, validated=JudgedSpec(revision=revision, spec=held))

    def put_in_force(self, name: str) -> None:
        """Let the model go by the newest revision that a validation accepted. `keep_former` comes first."""
        record = self.model(name)
        if record.validated is not None and record.validated != record.accepted:
            self._judge(name, accepted=record.validated)

    def keep_former(
        self, name: str, *, change_id: str, generation: int, placed: ModelPlacement | None, plan_id: str
    ) -> None:
        """Keep what the model goes by before a change is planned; `placed` is its placement.

        `generation` is the one that is rolled out by the change's manifest, 0 if the change brings none.

        `plan_id` is the plan that the change goes by. If another open change was planned before, what that one found is
        kept.
        """
        record = self.model(name)
        known = record.former or FormerBasis(
            change_id=change_id, generation=generation, accepted=record.accepted, placement=placed
        )
        planned = known.model_copy(update={"change_id": change_id, "generation": generation, "plan_id": plan_id})
        if planned != record.former:
            self._judge(name, former=planned)

    def end_force(self, name: str, *, change_id: str, done: bool) -> None:
        """End what a change put in force.

        From now on it is in force for good (`done`), or what it found is in force again.
        """
        record = self.model(name)
        known = record.former
        if known is None or known.change_id != change_id:
            return
        if done:
            self._judge(name, former=None)
        else:
            self._judge(name, former=None, accepted=known.accepted)

    def refuse_revision(self, name: str, revision: int) -> None:
        """Record that a validation, or the cut after it, refused a revision of the manifest.

        A serving one is not refused because of a new snapshot.
        """
        record = self.model(name)
        if record.observed_generation >= revision:
            return
        self.update_model(name, refused_generation=revision)
        known = record.validated
        if known is not None and known.revision == revision and record.accepted is not None:
            self._judge(name, validated=record.accepted)

    def _judge(self, name: str, **judged: JudgedSpec | FormerBasis | None) -> None:
        self._writing(name)
        said = {field: None if found is None else document(found) for field, found in judged.items()}
        self._write(_ONE_IS, of_name=name, **said, updated_at=self._now())

    def document_bytes(self, name: str) -> int:
        """Return the bytes of a model's documents; 0 if the model is unknown."""
        return int(self._run(_DOCUMENTS, name=name).scalar() or 0)

    def _no_model(self, name: str) -> NotFound:
        names = self._session.exec(select(ModelRow.name).order_by(col(ModelRow.name)).limit(NAMED_IN_ERRORS)).all()
        count = self._session.exec(select(func.count()).select_from(ModelRow)).one()
        msg = f"model {name!r} is not known; {format_known(list(names), count)}"
        return NotFound(msg)


def _access_bytes(manifest: ModelManifest, *, retired: bool) -> int:
    owner, access = manifest.metadata.owner, manifest.spec.access
    return listed_bytes(listed_access(manifest.name, owner, access, retired=retired))


def _retention(manifest: ModelManifest) -> str | None:
    spec = manifest.spec.retention
    return None if spec == RetentionSpec() else document(spec)


def _check_version(subject: str, current: int, expected: int | None) -> None:
    if expected is None or expected == current:
        return
    state = f"is at version {current}" if current else "does not exist (version 0)"
    msg = f"{subject} {state}, the write expects version {expected}; read it again, then write"
    raise StaleWrite(msg)


def _keeping(judged: str | None, former: ModelSpec) -> str | None:
    """Return a row's judged revision with its spec, when the manifest that had this spec is replaced."""
    known = _decode_judged(judged)
    if known is None or known.spec is not None:
        return judged
    return document(known.model_copy(update={"spec": former}))


def _decode_judged(text: str | None) -> JudgedSpec | None:
    return None if text is None else decode_frozen(JudgedSpec, text)


def _fleet(row: Any) -> FleetRecord:
    return FleetRecord(spec=decode_frozen(FleetSpec, row.spec), version=row.version, updated_at=row.updated_at)


def _decode_row(row: Any) -> ModelRecord | None:
    return None if row is None else _model(row)


def _model(row: Any) -> ModelRecord:
    return ModelRecord(
        manifest=decode_frozen(ModelManifest, row.manifest),
        generation=row.generation,
        observed_generation=row.observed_generation,
        version=row.version,
        serving_generation=row.serving_generation,
        target_generation=row.target_generation,
        refused_generation=row.refused_generation,
        validated=_decode_judged(row.validated),
        accepted=_decode_judged(row.accepted),
        former=None if row.former is None else decode_frozen(FormerBasis, row.former),
        retired=row.retired,
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
