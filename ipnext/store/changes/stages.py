"""How far changes are in their stages: a column of their rows, which few readers need."""

from collections.abc import Callable, Collection, Mapping
from datetime import datetime

from sqlalchemy import bindparam
from sqlalchemy import select as sa_select
from sqlalchemy import update as sa_update

from ipnext.model.lifecycle.changes.change_stages import ChangeStage, Stages
from ipnext.model.wire import decode_plain
from ipnext.store.changes.changes import CHANGES
from ipnext.store.unit_of_work import UnitOfWork, batches, document, plain

_STAGES = sa_select(CHANGES.c.stages).where(CHANGES.c.id == bindparam("id"))
_WRITE = sa_update(CHANGES).where(CHANGES.c.id == bindparam("of_id"))


class StageProgresses(UnitOfWork):
    """The stages of changes."""

    def begin_stages(self, model: str, change_id: str, stages: Stages) -> None:
        """Store the stages of a change that begins, or that is begun again."""
        self._writing(model)
        self._write(_WRITE, of_id=change_id, stages=_encode(stages))

    def note_stages(self, model: str, change_id: str, edit: Callable[[Stages, datetime], Stages]) -> None:
        """Store what `edit` makes of the stages now. Nothing happens to a change that began without them."""
        self._writing(model)
        stages = _decode(self._run(_STAGES, id=change_id).scalar())
        if stages and (edited := edit(stages, self._now())) != stages:
            self._write(_WRITE, of_id=change_id, stages=_encode(edited))

    def change_stages(self, ids: Collection[str]) -> Mapping[str, Stages]:
        """Map each of these changes to its stages; changes that have not begun are left out."""
        query = sa_select(CHANGES.c.id, CHANGES.c.stages).where(CHANGES.c.stages.is_not(None))
        found = (self._connection.execute(query.where(self._among(CHANGES.c.id, some))) for some in batches(ids))
        return {change_id: _decode(text) for rows in found for change_id, text in rows}


def _encode(stages: Stages) -> str:
    return document([each.model_dump(mode="json", exclude_defaults=True) for each in stages])


def _decode(text: str | None) -> Stages:
    return () if text is None else tuple(decode_plain(ChangeStage, each) for each in plain(text))
