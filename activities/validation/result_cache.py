"""Results of checks in the store, so that the same inputs are not checked again.

Called by the validation activities.
"""

from collections.abc import Sequence

from ipnext.model.lifecycle.checks import CheckResult
from ipnext.store.repository import Repository
from ipnext.store.store import Store


class StoredResults:
    """Results of one model's checks: read one key at a time, written together at the end of a validation."""

    def __init__(self, store: Store, model: str) -> None:
        self._store = store
        self._model = model
        self._made: list[tuple[str, str, Sequence[CheckResult]]] = []

    def find(self, key: str) -> Sequence[CheckResult] | None:
        """Return the stored results of a key; None if there are none."""
        with self._store.read() as repository:
            return repository.check_results(self._model, key)

    def keep(self, check: str, key: str, results: Sequence[CheckResult]) -> None:
        """Keep the results of a run until `write`."""
        self._made.append((check, key, results))

    def write(self, repository: Repository) -> None:
        """Store all that was kept."""
        for check, key, results in self._made:
            repository.add_check_results(self._model, check, key, results)
