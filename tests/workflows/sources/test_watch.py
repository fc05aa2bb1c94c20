"""Sources on a real Temporal server: what arrives in a directory serves, whatever ends on the way."""

import asyncio
import contextlib
import json
import shutil
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from temporalio.client import WorkflowExecutionStatus
from temporalio.service import RPCError

from ipnext import names
from ipnext.errors import Unavailable
from ipnext.model.lifecycle.changes.change import ChangeKind, ChangeState
from ipnext.model.lifecycle.sources import PollResult
from ipnext.model.lifecycle.status import ConditionType
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.manifest.sources import SourceSpec
from ipnext.model.registry.sources import Reach
from ipnext.store.sources.sources import WatchedSource
from ipnext.temporal import submit_change, wake_watch
from tests.waiting import PATIENCE_SECONDS, eventually


class Upstream:
    """The directories of a model's two parts, and what becomes of what is put there."""

    def __init__(self, house, kit, client, model: str) -> None:
        self.house, self.kit, self.client, self.model = house, kit, client, model
        self.root: Path = house.root / "upstream"
        house.apply(model, rollout={"canary": 1.0, "maxStep": 1.0, "deadlineSeconds": 180})
        self._watch(*("sparse", "dense"))

    def _watch(self, *parts: str, every: str = "1s", **more: object) -> None:
        found = []
        for part in parts:
            self.directory(part).mkdir(parents=True, exist_ok=True)
            path = str(self.directory(part))
            spec = SourceSpec.model_validate({"name": part, "every": every, "directory": {"path": path}, **more})
            found.append(WatchedSource(spec=spec, part=part, upstream=path, reach=Reach.SHARED))
        with self.house.store.begin(self.model) as unit:
            unit.put_sources(self.model, found)

    def directory(self, part: str) -> Path:
        return self.root / part

    def watch_id(self, part: str) -> str:
        return names.watch_workflow_id("directory", str(self.directory(part)))

    async def wake(self, *parts: str) -> None:
        for part in parts or ("sparse", "dense"):
            await wake_watch(self.client, "directory", str(self.directory(part)))

    def put(self, part: str, name: str, seed: int, *, trained_at: datetime | None = None) -> None:
        """Move a snapshot into a part's directory."""
        signature = {"sparse": self.kit.SPARSE, "dense": self.kit.DENSE}[part]
        draft = self.kit.write_snapshot(self.root / "drafts" / part / name, signature, self.kit.weights(seed))
        if trained_at is not None:
            (draft / "training.json").write_text(json.dumps({"trainedAt": trained_at.isoformat()}))
        draft.rename(self.directory(part) / name)

    def ask_freshness(self, part: str, target: str) -> None:
        with self.house.store.begin(self.model) as unit:
            document = unit.model(self.model).manifest.model_dump(mode="json", by_alias=True)
            for each in document["spec"]["parts"]:
                if each["name"] == part:
                    each["freshness"] = {"target": target}
            unit.put_model(ModelManifest.model_validate(document), expected_version=None)

    def fresh(self) -> tuple[str, str]:
        """Status and reason of the condition Fresh; empty if it is absent."""
        with self.house.store.read() as unit:
            found = [each for each in unit.conditions(self.model) if each.type is ConditionType.FRESH]
        return (found[0].status, found[0].reason.value) if found else ("", "")

    def versions(self, part: str) -> dict[str, str]:
        """Name of a directory -> state."""
        with self.house.store.read() as unit:
            page = unit.version_page(self.model, part, limit=1000)
        return {found.version.place: found.state.value for found in page.items}

    def published(self) -> list[tuple[int, dict[str, int]]]:
        """The generations with their snapshots, oldest first."""
        with self.house.store.read() as unit:
            return [(each.number, dict(each.snapshots)) for each in reversed(unit.generations(self.model))]

    def changes(self) -> list[ChangeState]:
        with self.house.store.read() as unit:
            return [change.state for change in unit.changes(self.model) if change.kind is ChangeKind.PUBLISH]

    async def until_over(self, part: str, *names_: str) -> None:
        """Wait until nothing is left to publish of these directories."""

        def over() -> bool:
            seen = self.versions(part)
            return all(seen.get(name) in {"published", "superseded", "refused"} for name in names_)

        await eventually(over)


@pytest.fixture
async def upstream(house, kit, client, model):
    found = Upstream(house, kit, client, model)
    yield found
    for run in (found.watch_id("sparse"), found.watch_id("dense"), names.pick_up_workflow_id(model)):
        with contextlib.suppress(RPCError):
            await client.get_workflow_handle(run).terminate()


@pytest.fixture
async def submitting(house, client):
    """Submits recorded changes as the API's outbox does."""

    over = False

    async def submit() -> None:
        while not over:
            with house.store.read() as unit:
                changes = unit.unsubmitted_changes()
            for change in changes:
                with contextlib.suppress(Unavailable):  # workers end on purpose here
                    await submit_change(client, change)
            await asyncio.sleep(0.1)

    task = asyncio.create_task(submit())
    yield
    over = True  # a cancelled submission would raise Unavailable
    await task


async def until_done(upstream: Upstream, count: int) -> None:
    await eventually(lambda: upstream.changes().count(ChangeState.DONE) >= count)


@pytest.mark.usefixtures("workers", "submitting")
async def test_parts_that_arrive_apart_are_published_together_first_and_then_by_themselves(upstream):
    await upstream.wake()
    upstream.put("sparse", "s1", 1)
    await eventually(lambda: upstream.versions("sparse") == {"s1": "found"})
    assert upstream.published() == [], "the model lacks a snapshot of its other part"
    upstream.put("dense", "d1", 2)
    await until_done(upstream, 1)
    assert upstream.published() == [(1, {"sparse": 1, "dense": 1})]
    upstream.put("dense", "d2", 3)
    await until_done(upstream, 2)
    assert upstream.published()[-1] == (2, {"sparse": 1, "dense": 2})
    assert upstream.versions("dense") == {"d1": "published", "d2": "published"}


@pytest.mark.usefixtures("workers")
async def test_what_comes_while_a_publish_waits_is_published_once_it_has_begun_the_newest_alone(upstream, client):
    """Nothing is submitted here: the first publish waits for its turn."""
    upstream.put("sparse", "s1", 1)
    upstream.put("dense", "d1", 2)
    await upstream.wake()
    await upstream.until_over("dense", "d1")
    for number in (2, 3, 4):
        upstream.put("dense", f"d{number}", number)
    await upstream.wake()
    await eventually(lambda: len(upstream.versions("dense")) == 4)
    assert len(upstream.published()) == 1
    with upstream.house.store.read() as unit:
        (waiting,) = unit.unsubmitted_changes()
    await submit_change(client, waiting)
    await upstream.until_over("dense", "d2", "d3", "d4")
    assert upstream.versions("dense") == {"d1": "published", "d2": "superseded", "d3": "superseded", "d4": "published"}
    assert [numbers["dense"] for _, numbers in upstream.published()] == [1, 2]


@pytest.mark.usefixtures("workers", "submitting")
async def test_a_corrupt_version_says_why_and_the_one_before_it_is_published(upstream):
    upstream.put("sparse", "s1", 1)
    upstream.put("dense", "d1", 2)
    upstream.put("dense", "d2", 3)
    weights = upstream.directory("dense") / "d2" / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"x")
    await upstream.wake()
    await until_done(upstream, 1)
    with upstream.house.store.read() as unit:
        page = {found.version.place: found for found in unit.version_page(upstream.model, "dense").items}
    assert (page["d1"].state.value, page["d2"].state.value) == ("published", "found")
    assert "weights.safetensors" in page["d2"].message


@pytest.mark.usefixtures("workers", "submitting", "reconciler")
async def test_a_part_breaches_its_freshness_until_its_training_system_brings_something_newer(upstream):
    upstream.ask_freshness("dense", "1h")
    upstream.put("sparse", "s1", 1)
    upstream.put("dense", "d1", 2, trained_at=datetime.now(UTC) - timedelta(hours=2))
    await upstream.wake()
    await until_done(upstream, 1)
    await eventually(lambda: upstream.fresh() == ("False", "TrainingLate"))
    with upstream.house.store.begin(upstream.model) as unit:
        unit.pause_source(upstream.model, "dense", by="ann", reason="audit")
    await eventually(lambda: upstream.fresh() == ("False", "PickUpLate"))
    upstream.put("dense", "d2", 3, trained_at=datetime.now(UTC))
    with upstream.house.store.begin(upstream.model) as unit:
        unit.resume_source(upstream.model, "dense")
    await upstream.wake("dense")
    await until_done(upstream, 2)
    await eventually(lambda: upstream.fresh() == ("True", "Fresh"))
    with upstream.house.store.read() as unit:
        events = [each.kind for each in reversed(unit.events(upstream.model)) if each.kind.startswith("Freshness")]
        serving = {(each.part, each.region): each.number for each in unit.serving_snapshots(upstream.model)}
    regions = {region for _, region in serving}
    assert sorted(events) == ["FreshnessBreached"] * len(regions) + ["FreshnessRestored"] * len(regions)
    assert serving == {(part, region): number for part, number in (("dense", 2), ("sparse", 1)) for region in regions}


@pytest.mark.usefixtures("submitting")
async def test_nothing_is_missed_or_doubled_while_workers_end_and_runs_are_terminated(upstream, serving, client):
    upstream.put("sparse", "s0", 0)
    count = 12
    for number in range(count):
        async with serving():
            await upstream.wake()
            upstream.put("dense", f"d{number}", 100 + number)
            if number % 3 == 0:
                await eventually(lambda number=number: f"d{number}" in upstream.versions("dense"))
            for run in (upstream.watch_id("dense"), names.pick_up_workflow_id(upstream.model)):
                if number % 2:
                    with contextlib.suppress(RPCError):
                        await client.get_workflow_handle(run).terminate()
    async with serving():
        await upstream.wake()
        await upstream.until_over("dense", *(f"d{number}" for number in range(count)))
    seen = upstream.versions("dense")
    assert len(seen) == count
    assert set(seen.values()) <= {"published", "superseded"}
    assert seen[f"d{count - 1}"] == "published"
    with upstream.house.store.read() as unit:
        digests = [each.digest for each in unit.snapshots(upstream.model) if each.part == "dense"]
    assert len(digests) == len(set(digests)) == list(seen.values()).count("published")


@pytest.mark.usefixtures("workers")
async def test_a_watch_ends_with_its_last_source_and_tells_its_state_before(upstream, client):
    await upstream.wake("dense")
    handle = client.get_workflow_handle(upstream.watch_id("dense"))
    async with asyncio.timeout(PATIENCE_SECONDS):
        while not (seen := await handle.query(names.WATCH_PROGRESS, result_type=PollResult)).states:  # noqa: ASYNC110 - a query
            await asyncio.sleep(0.1)
    assert [(state.model, state.source, state.text) for state in seen.states] == [
        (upstream.model, "dense", "nothing new")
    ]
    with upstream.house.store.begin(upstream.model) as unit:
        unit.put_sources(upstream.model, [])
    await upstream.wake("dense")
    async with asyncio.timeout(PATIENCE_SECONDS):
        await handle.result()
    assert (await handle.describe()).status is WorkflowExecutionStatus.COMPLETED


@pytest.mark.usefixtures("workers")
async def test_a_place_that_is_away_is_an_error_of_its_source_and_is_found_again(upstream):
    shutil.move(upstream.directory("dense"), upstream.root / "away")
    await upstream.wake("dense")

    def source():
        with upstream.house.store.read() as unit:
            return unit.source(upstream.model, "dense")

    await eventually(lambda: source().failures >= 2)
    assert "is not there" in source().error
    shutil.move(upstream.root / "away", upstream.directory("dense"))
    await eventually(lambda: source().failures == 0)


@pytest.mark.usefixtures("workers", "submitting")
async def test_a_paused_source_publishes_nothing_until_it_is_resumed(upstream):
    upstream.put("sparse", "s1", 1)
    upstream.put("dense", "d1", 2)
    await upstream.wake()
    await until_done(upstream, 1)
    with upstream.house.store.begin(upstream.model) as unit:
        unit.pause_source(upstream.model, "dense", by="key ops", reason="audit")
    upstream.put("dense", "d2", 3)
    upstream.put("sparse", "s2", 4)
    await upstream.wake()
    await until_done(upstream, 2)
    assert upstream.published()[-1] == (2, {"sparse": 2, "dense": 1})
    with upstream.house.store.begin(upstream.model) as unit:
        unit.resume_source(upstream.model, "dense")
    await upstream.wake()
    await until_done(upstream, 3)
    assert upstream.published()[-1] == (3, {"sparse": 2, "dense": 2})
