"""Labels of models and owners, repeated from their manifests for filters of lists."""

from collections.abc import Mapping
from typing import Any, Literal

from sqlalchemy import ColumnElement, delete, insert, select

from ipnext.store.tables.registry import LabelRow
from ipnext.store.tables.row import METADATA
from ipnext.store.unit_of_work import UnitOfWork

LabelledKind = Literal["Model", "Owner"]

_LABELS = METADATA.tables[LabelRow.__tablename__]


class Labels(UnitOfWork):
    """Labels, written in the unit that writes the manifest."""

    def _put_labels(self, kind: LabelledKind, name: str, labels: Mapping[str, str]) -> None:
        """Replace the labels of an object."""
        self.flush()
        of = (_LABELS.c.kind == kind, _LABELS.c.name == name)
        known = {row.key: row.value for row in self._run(select(_LABELS.c.key, _LABELS.c.value).where(*of))}
        if known == dict(labels):
            return
        self._run(delete(_LABELS).where(*of))
        for key, value in sorted(labels.items()):
            self._run(insert(_LABELS).values(kind=kind, name=name, key=key, value=value))

    def _has_labels(self, kind: LabelledKind, name: Any, labels: Mapping[str, str]) -> tuple[ColumnElement[bool], ...]:
        """Return the conditions that a column names an object with all of these labels."""
        return tuple(
            name.in_(
                select(_LABELS.c.name).where(_LABELS.c.kind == kind, _LABELS.c.key == key, _LABELS.c.value == value)
            )
            for key, value in sorted(labels.items())
        )
