"""Collects what nothing names in the artifact store."""

from collections.abc import Callable, Sequence
from typing import Any

from temporalio import activity

from activities.runtime.deadline import beat
from ipnext.artifacts.port import ArtifactStore
from ipnext.model.artifact_use import CollectInput
from ipnext.model.lifecycle import Done
from ipnext.platform.collection import Collection, Grace
from ipnext.store.session import Store


class CollectingActivities:
    """Needs the store and the artifact store. `grace`: for how long what nothing wants is kept."""

    def __init__(self, store: Store, artifacts: ArtifactStore, grace: Grace) -> None:
        self._store = store
        self._artifacts = artifacts
        self._grace = grace

    def all(self) -> Sequence[Callable[..., Any]]:
        """Everything a worker registers."""
        return (self.collect_artifacts,)

    @activity.defn(name="collect_artifacts", no_thread_cancel_exception=True)
    def collect_artifacts(self, asked: CollectInput) -> Done:
        """Make one pass. One that is repeated finds what is left."""
        del asked
        return Done(note=Collection(self._store, self._artifacts, self._grace, beat=beat).run().summary)
