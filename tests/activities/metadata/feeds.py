"""Watched directories of a model, and what their versions became."""

from datetime import timedelta

from temporalio.testing import ActivityEnvironment

from activities.metadata.activities import MetadataActivities
from activities.metadata.source_pick_up import SourcePickUpActivities
from activities.metadata.source_poll import SourcePollActivities
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.changes.entity import SupersededChange, SupersededInput
from ipnext.model.lifecycle.changes.lifecycle_run import LifecycleResult, RecordInput
from ipnext.model.lifecycle.sources import PickUpInput, WatchInput
from ipnext.model.manifest.sources import SourceSpec
from ipnext.model.registry.sources import Reach
from ipnext.platform.publication import Publisher
from ipnext.plugins import Plugins
from ipnext.settings import PlatformSettings
from ipnext.sources.kinds import SourceKinds
from ipnext.store.operations.change_end import end_change
from ipnext.store.sources.sources import WatchedSource
from ipnext.store.unit_of_work import utc_now


class Feeds:
    """Watched directories of a model of one part."""

    def __init__(self, house, kit) -> None:
        self.house, self.kit = house, kit
        whole = {"name": "whole", "engine": "torch", "hardware": [{"kind": "cpu", "units": 1, "qps": 100}]}
        house.apply("ranker", parts=[whole], graph=None)
        self.settings = PlatformSettings(artifact_roots=(house.root,))
        self.kinds = SourceKinds()
        self.publisher = Publisher(house.store, house.artifacts, Plugins(), owner_bytes=2**40)

    def watch(self, *names: str, **more: object) -> None:
        found = []
        for name in names:
            path = self.house.root / name
            path.mkdir(exist_ok=True)
            spec = SourceSpec.model_validate({"name": name, "directory": {"path": str(path)}, **more})
            found.append(WatchedSource(spec=spec, part="whole", upstream=str(path), reach=Reach.SHARED))
        with self.house.store.begin("ranker") as unit:
            unit.put_sources("ranker", found)

    def put(self, source: str, name: str, seed: int, **more: object) -> str:
        """Put a snapshot; its digest."""
        tensors = self.kit.weights(seed)
        draft = self.kit.write_snapshot(self.house.root / "draft" / source / name, self.kit.WHOLE, tensors, **more)
        draft.rename(self.house.root / source / name)
        return self.digest(source, name)

    def put_delta(self, source: str, name: str, parent: str) -> str:
        return self.put(source, name, hash(name) % 1000, parent=parent, more={"delta.json": name.encode()})

    def digest(self, source: str, name: str) -> str:
        manifest = (self.house.root / source / name / "snapshot.json").read_text()
        return self.kit.SnapshotManifest.model_validate_json(manifest).digest

    def poll(self, *names: str):
        activities = SourcePollActivities(self.house.store, self.kinds, self.settings)
        for name in names:
            asked = WatchInput(kind="directory", upstream=str(self.house.root / name))
            ActivityEnvironment().run(activities.poll_sources, asked)

    def pick_up(self):
        activities = SourcePickUpActivities(
            self.house.store, self.house.artifacts, self.kinds, self.publisher, self.settings
        )
        return ActivityEnvironment().run(activities.pick_up_versions, PickUpInput(model="ranker"))

    def versions(self, source: str):
        with self.house.store.read() as unit:
            return {each.version.place: each for each in unit.version_page("ranker", source).items}

    def states(self, source: str):
        return {place: version.state.value for place, version in self.versions(source).items()}

    def begin_all(self) -> None:
        """As the runs of the recorded changes would."""
        with self.house.store.begin("ranker") as unit:
            for change in unit.unsubmitted_changes():
                unit.update_change(change.id, state=ChangeState.RUNNING)

    def retire(self, change_id: str = "r") -> None:
        with self.house.store.begin("ranker") as unit:
            unit.add_change("ranker", ChangeKind.RETIRE, change_id=change_id)

    def supersede(self, change_id: str, *, by: str) -> None:
        superseded = (SupersededChange(change_id=change_id, by=by),)
        activities = MetadataActivities(self.house.store, self.house.artifacts)
        activities.mark_superseded(SupersededInput(model="ranker", superseded=superseded))

    def end(self, change_id: str, kind: ChangeKind, state: ChangeState) -> None:
        result = LifecycleResult(state=state)
        record = RecordInput(
            model="ranker", change_id=change_id, kind=kind, generation=None, result=result, run_id="", plan_id=None
        )
        with self.house.store.begin("ranker") as unit:
            end_change(unit, record)

    def snapshots(self):
        with self.house.store.read() as unit:
            return [each.digest for each in reversed(unit.snapshots("ranker"))]

    def make_due(self) -> None:
        with self.house.store.begin_free(()) as unit:
            for version in unit.pending_versions("ranker"):
                unit.postpone_version(version.ordinal, version.message, utc_now() - timedelta(seconds=1))
