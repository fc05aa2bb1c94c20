"""Owners as applied, and the claims of their models on their quotas."""

from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from types import MappingProxyType

from sqlalchemy import insert as sa_insert
from sqlmodel import col, delete, func, select

from ipnext.errors import Conflict, NotFound, StaleWrite
from ipnext.model.access.owner import ARTIFACTS, DOLLARS, MODELS, OwnerManifest, OwnerMember
from ipnext.model.access.rights import ANY, Grant, Role
from ipnext.model.manifest.derived.owner_claims import QuotaClaim
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.wire import decode_frozen
from ipnext.store.database import dialects
from ipnext.store.paging import Page, clamp_limit, page_of
from ipnext.store.records import OwnerRecord, OwnerUse
from ipnext.store.registry.artifacts import Artifacts
from ipnext.store.registry.labels import Labels
from ipnext.store.tables.access import OwnerClaimRow, OwnerRow, RoleBindingRow
from ipnext.store.tables.planning import PlacedReplicasRow, PlacementRow
from ipnext.store.tables.registry import ModelRow
from ipnext.store.unit_of_work import NAMED_IN_ERRORS, batches, document, format_known


class Owners(Labels, Artifacts):
    """Owners concern all models, so a unit that names one may not write them; a claim is of one model."""

    def put_owner(self, manifest: OwnerManifest, *, expected_version: int | None) -> OwnerRecord:
        """Create or replace an owner, without its members; an equal one stays unchanged.

        `expected_version` is the version that the caller read, 0 if there was none; StaleWrite on another. None: any.
        """
        self._writing(None)
        row = self._get(OwnerRow, manifest.name)
        _check_version(manifest.name, row, expected_version)
        plain = manifest.model_copy(update={"spec": manifest.spec.model_copy(update={"members": None})})
        text, now = document(plain), self._now()
        if row is None:
            row = OwnerRow(
                name=manifest.name,
                manifest=text,
                priority=manifest.spec.priority,
                version=1,
                created_at=now,
                updated_at=now,
            )
        elif row.manifest != text:
            row.manifest, row.priority, row.version, row.updated_at = text, manifest.spec.priority, row.version + 1, now
        self._add(row)
        self._put_labels("Owner", manifest.name, manifest.metadata.labels)
        return _owner(row)

    def delete_owner(self, name: str, *, expected_version: int | None) -> OwnerRecord:
        """Delete an owner and return its former record.

        NotFound; StaleWrite; Conflict while a model has the owner, retired or not, or shares its predictions with it:
        the next owner of that name would get them.
        """
        self._writing(None)
        row = self._owner_row(name)
        _check_version(name, row, expected_version)
        self._check_without_models(name)
        self._check_calls_no_model(name)
        record = _owner(row)
        self._session.delete(row)
        self._session.flush()
        self._put_labels("Owner", name, {})
        return record

    def _check_without_models(self, name: str) -> None:
        row = ModelRow
        query = select(row.name, row.retired).where(row.owner == name)
        models = self._session.exec(query.order_by(col(row.retired), col(row.name)).limit(NAMED_IN_ERRORS)).all()
        if models:
            count = self._session.exec(select(func.count()).select_from(row).where(row.owner == name)).one()
            named = _name_some([f"{model} (retired)" if retired else model for model, retired in models], count)
            msg = (
                f"owner {name!r} still has models: {named}; give them another owner first: "
                "apply their manifests with it, "
                "and retire again those that are retired"
            )
            raise Conflict(msg)

    def _check_calls_no_model(self, name: str) -> None:
        row = ModelRow
        query = select(row.name, row.manifest).where(col(row.manifest).contains(f'"{name}"', autoescape=True))
        found = self._session.exec(query.order_by(col(row.name))).all()
        models = [model for model, text in found if name in decode_frozen(ModelManifest, text).spec.access.callers]
        if models:
            named = _name_some(models[:NAMED_IN_ERRORS], len(models))
            msg = (
                f"owner {name!r} may still ask models of other owners: {named}; "
                "take it out of their spec.access.callers first"
            )
            raise Conflict(msg)

    def owner(self, name: str) -> OwnerRecord:
        """Return one owner. NotFound names known ones."""
        return _owner(self._owner_row(name))

    def find_owner(self, name: str) -> OwnerRecord | None:
        """Return one owner, or None if there is none of that name."""
        row = self._get(OwnerRow, name)
        return None if row is None else _owner(row)

    def owner_page(
        self, *, after: str | None, limit: int, labels: Mapping[str, str] = MappingProxyType({})
    ) -> Page[OwnerRecord]:
        """Return the owners that are visible to this unit and have these labels, by name."""
        query = select(OwnerRow).order_by(col(OwnerRow.name))
        query = query.where(*self._has_labels("Owner", col(OwnerRow.name), labels))
        if self._visible is not None:
            query = query.where(self._among(col(OwnerRow.name), self._visible))
        query = query if after is None else query.where(col(OwnerRow.name) > after)
        found = self._session.exec(query.limit(clamp_limit(limit) + 1)).all()
        return page_of(found, clamp_limit(limit), key=lambda row: row.name, value=_owner)

    def owner_priorities(self) -> Mapping[str, int]:
        """Map each owner whose priority is not 0 to it."""
        query = select(OwnerRow.name, OwnerRow.priority).where(col(OwnerRow.priority) != 0)
        return dict(self._session.exec(query).all())

    # members

    def owner_members(self, owners: Collection[str]) -> Mapping[str, tuple[OwnerMember, ...]]:
        """Map each owner to the role bindings over its models, by subject and role."""
        found: dict[str, list[OwnerMember]] = defaultdict(list)
        for row in self._member_rows(owners):
            found[row.owner].append(OwnerMember(subject=row.subject, role=Role(row.role)))
        return {owner: tuple(sorted(of, key=lambda m: (m.subject, m.role.rank))) for owner, of in found.items()}

    def remove_members(self, owner: str, *, but: Collection[OwnerMember] = ()) -> None:
        """Remove the role bindings over an owner's models, except those of some members."""
        self._writing(None)
        kept = {(member.subject, member.role.value) for member in but}
        for row in self._member_rows((owner,)):
            if (row.subject, row.role) not in kept:
                self._session.delete(row)
        self._session.flush()

    def _member_rows(self, owners: Collection[str]) -> Sequence[RoleBindingRow]:
        row = RoleBindingRow
        query = select(row).where(self._among(col(row.owner), owners), col(row.region) == ANY)
        return self._session.exec(query).all()

    # quotas

    def lock_owner(self, name: str) -> None:
        """Wait for other units that admit a model of this owner: one unit at a time counts and writes claims."""
        dialects.lock_owner(self._session.connection(), name)

    def claim(self, model: str, amounts: Mapping[str, float]) -> None:
        """Replace the amounts that a model counts for. Equal amounts write nothing."""
        self._writing(model)
        known = select(OwnerClaimRow.quota, OwnerClaimRow.amount).where(OwnerClaimRow.model == model)
        if dict(self._session.exec(known).all()) == dict(amounts):
            return
        self._session.connection().execute(delete(OwnerClaimRow).where(col(OwnerClaimRow.model) == model))
        rows = [{"model": model, "quota": quota, "amount": amount} for quota, amount in sorted(amounts.items())]
        if rows:
            self._session.connection().execute(sa_insert(OwnerClaimRow), rows)

    def claim_of(self, model: str, owner: str) -> QuotaClaim:
        """Return the amounts that a model occupies of the quotas of an owner, and whether they are part of its sums."""
        row = self._get(ModelRow, model)
        query = select(OwnerClaimRow.quota, OwnerClaimRow.amount).where(OwnerClaimRow.model == model)
        is_counted = row is not None and not row.retired and row.owner == owner
        return QuotaClaim(dict(self._session.exec(query).all()), is_counted)

    def count_names(self, owner: str, *, but: str) -> int:
        """Return the number of an owner's models, retired ones included, except one."""
        row = ModelRow
        query = select(func.count()).select_from(row).where(row.owner == owner, row.name != but)
        return self._session.exec(query).one()

    def claims_named(self, models: Collection[str]) -> Mapping[str, Mapping[str, float]]:
        """Map these models to the amounts that they occupy of their owners' quotas; models without any are left out."""
        row, found = OwnerClaimRow, defaultdict[str, dict[str, float]](dict)
        for some in batches(models):
            query = select(row.model, row.quota, row.amount).where(self._among(col(row.model), some))
            for model, quota, amount in self._session.exec(query):
                found[model][quota] = amount
        return found

    def sum_claims(self, owner: str, *, but: str) -> Mapping[str, float]:
        """Map each quota to the amount of an owner's models, except one; `models` is their number."""
        return self._sum_claims((owner,), but)[owner]

    def owner_uses(self, owners: Collection[str]) -> Mapping[str, OwnerUse]:
        """Map each of these owners to the claims and placements of its models."""
        claimed, stated = self._sum_claims(owners), self._models_with_budget(owners)
        stored = self.owners_artifact_bytes(owners)
        units, replicas, costs = self._sum_placed(owners)
        return {
            owner: OwnerUse(
                claimed={**claimed[owner], **({ARTIFACTS: float(stored[owner])} if owner in stored else {})},
                without_budget=round(claimed[owner][MODELS]) - stated.get(owner, 0),
                placed_units=units.get(owner, {}),
                placed_replicas=replicas[owner],
                placed_cost=costs.get(owner, 0.0),
            )
            for owner in owners
        }

    def _sum_claims(self, owners: Collection[str], but: str = "") -> Mapping[str, Mapping[str, float]]:
        model, claim = ModelRow, OwnerClaimRow
        counted = (col(model.retired).is_(False), col(model.name) != but)
        found: dict[str, dict[str, float]] = {owner: {MODELS: 0.0} for owner in owners}
        for some in batches(owners):
            of = (self._among(col(model.owner), some), *counted)
            numbers = select(model.owner, func.count()).where(*of).group_by(model.owner)
            for owner, count in self._session.exec(numbers):
                found[owner][MODELS] = float(count)
            sums = select(model.owner, claim.quota, func.sum(claim.amount)).join(claim, col(claim.model) == model.name)
            for owner, quota, amount in self._session.exec(sums.where(*of).group_by(model.owner, claim.quota)):
                found[owner][quota] = amount
        return found

    def _models_with_budget(self, owners: Collection[str]) -> Mapping[str, int]:
        model, claim = ModelRow, OwnerClaimRow
        query = select(model.owner, func.count()).join(claim, col(claim.model) == model.name)
        query = query.where(col(claim.quota) == DOLLARS, col(model.retired).is_(False)).group_by(model.owner)
        return {
            owner: count
            for some in batches(owners)
            for owner, count in self._session.exec(query.where(self._among(col(model.owner), some)))
        }

    def _sum_placed(
        self, owners: Collection[str]
    ) -> tuple[Mapping[str, Mapping[str, float]], Mapping[str, int], Mapping[str, float]]:
        """Return units by hardware kind, replicas, and $/h of each owner, by the plan in force."""
        row, placed = PlacedReplicasRow, PlacementRow
        units: dict[str, dict[str, float]] = defaultdict(dict)
        replicas: Counter[str] = Counter()
        costs: dict[str, float] = {}
        for some in batches(owners):
            taken = select(row.owner, row.hardware, func.sum(col(row.count) * col(row.units)), func.sum(col(row.count)))
            for owner, hardware, figure, count in self._session.exec(
                taken.where(self._among(col(row.owner), some)).group_by(row.owner, row.hardware)
            ):
                units[owner][hardware] = figure
                replicas[owner] += count
            paid = select(placed.owner, func.sum(placed.cost_per_hour)).group_by(placed.owner)
            costs |= dict(self._session.exec(paid.where(self._among(col(placed.owner), some))).all())
        return units, replicas, costs

    def _owner_row(self, name: str) -> OwnerRow:
        row = self._get(OwnerRow, name)
        if row is None:
            names = sorted(self._session.exec(select(OwnerRow.name)))
            msg = f"owner {name!r} is not known; {format_known(names)}"
            raise NotFound(msg)
        return row


def member_grant(owner: str, member: OwnerMember) -> Grant:
    """Return the grant of a member: a role over the owner's models."""
    return Grant(role=member.role, owner=owner)


def _name_some(names: Sequence[str], count: int) -> str:
    """Return the first names of `count`, for an error's text."""
    more = f" and {count - len(names)} more" if count > len(names) else ""
    return ", ".join(names) + more


def _check_version(name: str, row: OwnerRow | None, expected: int | None) -> None:
    current = 0 if row is None else row.version
    if expected is None or expected == current:
        return
    state = f"is at version {current}" if current else "does not exist (version 0)"
    msg = f"owner {name!r} {state}, the write expects version {expected}; read it again, then write"
    raise StaleWrite(msg)


def _owner(row: OwnerRow) -> OwnerRecord:
    manifest = decode_frozen(OwnerManifest, row.manifest)
    return OwnerRecord(manifest=manifest, version=row.version, created_at=row.created_at, updated_at=row.updated_at)
