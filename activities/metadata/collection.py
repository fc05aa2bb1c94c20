"""Garbage collection of the artifact store: removes unreferenced artifacts."""

from collections.abc import Callable, Sequence
from typing import Any

from temporalio import activity

from activities.runtime.deadline import beat
from ipnext.artifacts.port import ArtifactStore
from ipnext.model.access.artifact_use import CollectInput
from ipnext.model.lifecycle.messages import Done
from ipnext.platform.collection import Collection, Grace
from ipnext.store.store import Store


class CollectingActivities:
    """Collection activities, on the store and the artifact store.

    `grace` is how long unreferenced artifacts are kept.
    """

    def __init__(self, store: Store, artifacts: ArtifactStore, grace: Grace) -> None:
        self._store = store
        self._artifacts = artifacts
        self._grace = grace

    def all(self) -> Sequence[Callable[..., Any]]:
        """Return the activities that a worker registers."""
        return (self.collect_artifacts,)

    @activity.defn(name="collect_artifacts", no_thread_cancel_exception=True)
    def collect_artifacts(self, asked: CollectInput) -> Done:
        """Run one pass. A repeated one finds the rest."""
        del asked
        return Done(note=Collection(self._store, self._artifacts, self._grace, beat=beat).run().summary)
