"""Roles of people and groups of the identity provider."""

from collections.abc import Collection

from sqlmodel import col, select

from ipnext.errors import NotFound
from ipnext.model.access.rights import Grant
from ipnext.model.access.roles import RoleBinding
from ipnext.store.paging import Page, clamp_limit, ordinal_of, page_of
from ipnext.store.tables.access import RoleBindingRow
from ipnext.store.unit_of_work import UnitOfWork, batches


class RoleBindings(UnitOfWork):
    """Bindings belong to no model: a unit that names one may not add or remove them."""

    def bind_role(self, binding: RoleBinding) -> RoleBinding:
        """Store a binding, or return the one that already grants the same to the subject."""
        self._writing(None)
        query = select(RoleBindingRow).where(RoleBindingRow.subject == binding.subject)
        rows = self._session.exec(query.order_by(col(RoleBindingRow.ordinal)))
        same = next((row for row in rows if _grant(row) == binding.grant), None)
        if same is not None:
            return _binding(same)
        self._add(RoleBindingRow(**binding.grant.model_dump(mode="json"), **binding.model_dump(exclude={"grant"})))
        return binding

    def unbind_role(self, binding_id: str) -> RoleBinding:
        """Remove a binding. Raises NotFound."""
        self._writing(None)
        row = self._session.exec(select(RoleBindingRow).where(RoleBindingRow.id == binding_id)).first()
        if row is None:
            msg = f"no role binding has the id {binding_id!r}; `ipnext roles list` shows them"
            raise NotFound(msg)
        self._session.delete(row)
        self._session.flush()
        return _binding(row)

    def role_binding_page(self, *, after: str | None, limit: int) -> Page[RoleBinding]:
        """Return the bindings, the newest first."""
        query = select(RoleBindingRow).order_by(col(RoleBindingRow.ordinal).desc())
        ordinal = ordinal_of(after)
        if ordinal is not None:
            query = query.where(col(RoleBindingRow.ordinal) < ordinal)
        found = self._session.exec(query.limit(clamp_limit(limit) + 1)).all()
        return page_of(found, clamp_limit(limit), key=lambda row: row.ordinal, value=_binding)

    def grants_of(self, subjects: Collection[str]) -> tuple[Grant, ...]:
        """Return the grants of these subjects (`group:NAME`, `user:NAME`, `email:ADDRESS`, `sub:ID`).

        Each is there once, in a fixed order.
        """
        row = RoleBindingRow
        found = {
            _grant(item)
            for some in batches(subjects)
            for item in self._session.exec(select(row).where(self._among(col(row.subject), some)))
        }
        return tuple(sorted(found, key=lambda grant: (grant.owner, grant.region, grant.role.rank)))


def _grant(row: RoleBindingRow) -> Grant:
    return Grant.model_validate({"role": row.role, "owner": row.owner, "region": row.region})


def _binding(row: RoleBindingRow) -> RoleBinding:
    return RoleBinding(
        id=row.id, subject=row.subject, grant=_grant(row), created_at=row.created_at, created_by=row.created_by
    )
