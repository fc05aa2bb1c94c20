"""Whose the record is: one Temporal namespace runs its changes, and no other."""

from ipnext.errors import Conflict
from ipnext.model.workflow_namespace import WorkflowNamespace
from ipnext.store.tables import WorkflowNamespaceRow
from ipnext.store.unit import Unit

_ONLY = 1


class Belonging(Unit):
    """The namespace that the record belongs to."""

    def belong_to(self, namespace: WorkflowNamespace) -> None:
        """The first that asks has the record. Conflict for another: two that run the changes of one record undo each other's."""
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
                f"this record belongs to another platform: the Temporal namespace {row.name} ({row.namespace_id}), at {row.address} "
                f"when it began on {row.created_at:%Y-%m-%d %H:%M} UTC, not {namespace.name} ({namespace.id}) at {namespace.address}. "
                "Allowed: a database of its own for each platform; if that namespace is gone for good, see docs/store.md"
            )
            raise Conflict(msg)

    def belongs_to(self) -> WorkflowNamespace | None:
        """The namespace that has the record; None before anything has served it."""
        row = self._get(WorkflowNamespaceRow, _ONLY)
        return None if row is None else WorkflowNamespace(id=row.namespace_id, name=row.name, address=row.address)
