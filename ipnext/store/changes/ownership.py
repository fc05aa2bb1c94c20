"""Ownership of the database: one Temporal namespace runs its changes, and no other."""

from ipnext.errors import Conflict
from ipnext.model.lifecycle.workflow_namespace import WorkflowNamespace
from ipnext.store.tables.database import WorkflowNamespaceRow
from ipnext.store.unit_of_work import UnitOfWork

_ONLY = 1


class NamespaceOwner(UnitOfWork):
    """The namespace that owns the database."""

    def belong_to(self, namespace: WorkflowNamespace) -> None:
        """Claim this database for a Temporal namespace. The first claim wins.

        Conflict if another namespace owns it: two platforms on one database would revert each other's changes.
        """
        self._writing(None)
        row = self._get(WorkflowNamespaceRow, _ONLY)
        if row is None:
            self._add(
                WorkflowNamespaceRow(
                    id=_ONLY,
                    namespace_id=namespace.id,
                    name=namespace.name,
                    address=namespace.address,
                    created_at=self._now(),
                )
            )
        elif row.namespace_id != namespace.id:
            msg = (
                f"this record belongs to another platform: the Temporal namespace {row.name} "
                f"({row.namespace_id}), at {row.address} "
                f"when it began on {row.created_at:%Y-%m-%d %H:%M} UTC, not {namespace.name} ({namespace.id}) "
                f"at {namespace.address}. "
                "Allowed: a database of its own for each platform; if that namespace is gone for good, "
                "see docs/store.md"
            )
            raise Conflict(msg)

    def belongs_to(self) -> WorkflowNamespace | None:
        """Return the namespace that owns the database; None before the first claim."""
        row = self._get(WorkflowNamespaceRow, _ONLY)
        return None if row is None else WorkflowNamespace(id=row.namespace_id, name=row.name, address=row.address)
