"""Results of checks by their inputs, and checks whose refusals let one change pass."""

from collections.abc import Mapping, Sequence
from typing import Final

from sqlmodel import col, delete, select

from ipnext.model.lifecycle.checks import CheckOverride, CheckResult
from ipnext.model.wire import decode
from ipnext.store.changes.changes import Changes
from ipnext.store.tables.changes import CheckOverrideRow
from ipnext.store.tables.registry import CheckResultsRow
from ipnext.store.unit_of_work import bytes_of, document

MOST_KEPT: Final = 32
"""Results of checks that are kept for a model, the newest ones: with LARGEST_KEPT_BYTES, 2 MiB at most."""
LARGEST_KEPT_BYTES: Final = 64 << 10
"""Of the results of one check; larger ones are computed at each validation."""


class Checks(Changes):
    """What validations leave besides their reports."""

    def check_results(self, model: str, key: str) -> tuple[CheckResult, ...] | None:
        """Return the results of a check of these inputs; None if there are none."""
        row = self._get(CheckResultsRow, (model, key))
        return None if row is None else decode(tuple[CheckResult, ...], row.results)

    def add_check_results(self, model: str, check: str, key: str, results: Sequence[CheckResult]) -> None:
        """Keep the results of a check, in place of the oldest ones of the model. Raises NotFound."""
        self._writing_model(model)
        text = document([result.model_dump(mode="json") for result in results])
        if bytes_of(text) > LARGEST_KEPT_BYTES:
            return
        row = self._get(CheckResultsRow, (model, key))
        if row is None:
            row = CheckResultsRow(model=model, key=key, check=check, results=text, created_at=self._now())
        row.results, row.created_at = text, self._now()
        self._add(row)
        self._drop_old_results(model)

    def _drop_old_results(self, model: str) -> None:
        newest = select(CheckResultsRow.key).where(CheckResultsRow.model == model)
        newest = newest.order_by(col(CheckResultsRow.created_at).desc(), col(CheckResultsRow.key))
        old = list(self._session.exec(newest.offset(MOST_KEPT)))
        if old:
            self._run(
                delete(CheckResultsRow).where(col(CheckResultsRow.model) == model, col(CheckResultsRow.key).in_(old))
            )

    def override_check(self, change_id: str, check: str, *, who: str, reason: str) -> CheckOverride:
        """Let one change pass although a check refuses. If repeated, the first override stays. Raises NotFound."""
        change = self.change(change_id)
        self._writing(change.model)
        row = self._get(CheckOverrideRow, (change_id, check))
        if row is None:
            row = CheckOverrideRow(
                change_id=change_id, check=check, model=change.model, at=self._now(), who=who, reason=reason
            )
            self._add(row)
        return _override(row)

    def check_overrides(self, change_id: str) -> Mapping[str, CheckOverride]:
        """Map each check that a change may pass to its override."""
        rows = self._session.exec(select(CheckOverrideRow).where(CheckOverrideRow.change_id == change_id))
        return {row.check: _override(row) for row in rows}


def _override(row: CheckOverrideRow) -> CheckOverride:
    return CheckOverride(
        change_id=row.change_id, check=row.check, model=row.model, at=row.at, who=row.who, reason=row.reason
    )
