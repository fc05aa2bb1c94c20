"""Collection by retention: snapshots, their artifacts, and the history."""

from collections.abc import Callable, Sequence
from typing import Any, Final

from temporalio import activity

from activities.runtime.deadline import beat
from ipnext.artifacts.port import ArtifactStore
from ipnext.model.access.artifact_use import CollectInput
from ipnext.model.lifecycle.changes.lifecycle_run import Done
from ipnext.platform.collection import Collection, Retention
from ipnext.store.store import Store

MOST_PASSES: Final = 200
"""Passes of one activity; each takes less than a minute."""


class CollectingActivities:
    """Collection activities, on the store and the artifact store."""

    def __init__(self, store: Store, artifacts: ArtifactStore, retention: Retention) -> None:
        self._store = store
        self._artifacts = artifacts
        self._retention = retention

    def all(self) -> Sequence[Callable[..., Any]]:
        """Return the activities that a worker registers."""
        return (self.collect_artifacts,)

    @activity.defn(name="collect_artifacts", no_thread_cancel_exception=True)
    def collect_artifacts(self, asked: CollectInput) -> Done:
        """Run passes until nothing is left. A repeated activity finds the rest."""
        del asked
        for _ in range(MOST_PASSES):
            found = Collection(self._store, self._artifacts, self._retention, beat=beat).run()
            if not found.unfinished:
                break
        return Done(note=found.summary)
