"""Records the histories that the replay test reads. Run it after a gated change of a workflow's commands:

    python -m tests.workflows.builds.record_histories [NAME ...]

Names after it (such as `lifecycle-frozen`) write only those; without names all of them. It runs real workflows on a
real server, takes names, paths and process ids out, and writes histories/*.json. A change that is not gated
(workflow.patched) must not be recorded over: it breaks the runs that are under way.
"""

import asyncio
import json
import subprocess
import sys
import tempfile
from contextlib import AsyncExitStack
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from temporalio.client import Client

from activities.planning.solver import ThreadSolver
from ipnext import names
from ipnext.devfile import read_devfile, server_command, temporal_binary
from ipnext.infra.process.parent_death import tether
from ipnext.infra.process.ports import free_port
from ipnext.model.lifecycle.changes.change import ChangeKind
from ipnext.model.lifecycle.regions.drain import DrainState
from ipnext.model.lifecycle.replans.replan import Replan, ScheduledReplan
from ipnext.model.manifest.freeze import FreezeManifest
from ipnext.temporal import connect, signal_drain, submit_change
from tests.plugin_packages import write_distribution
from tests.workflows.conftest import load_house, until, until_up
from workflows.worker import engine_of, lifecycle_activities, planner_activities, worker_of

HISTORIES = Path(__file__).parent / "histories"
MODEL = "ranker"
CUT_MODEL = "cut-ranker"
FROZEN_MODEL = "frozen-ranker"
STAGED_MODEL = "staged-ranker"
STAGE = """
from temporalio import activity

from ipnext.stages.port import Stage, StageAnswer, StageRequest


@activity.defn(name="stage.audit")
def audit(request: StageRequest) -> StageAnswer:
    return StageAnswer(passed=True, evidence={"gap": 0.01})


stage = Stage(name="audit", activity=audit)
"""
"""A stage of another package, which nothing that replays has."""
ROLLOUT = {"canary": 0.5, "maxStep": 0.5, "holdSeconds": 0.1, "deadlineSeconds": 180}
SCRUBBED = {"identity": "worker", "stackTrace": "", "binaryChecksum": "", "buildId": ""}


async def record(client: Client, house: Any) -> None:
    """Publish, publish, a failing publish, a rollback, a replan, a retirement, a repair that comes after it.

    Then a model that is cut, one that is frozen, and one with a stage of another package.
    """

    async def carry_out(change: Any) -> None:
        await submit_change(client, change)
        await until(lambda: house.change(change.id).state.final)

    house.apply(MODEL, rollout=ROLLOUT)
    await carry_out(house.publish(MODEL, 1, change_id="first"))
    await carry_out(house.publish(MODEL, 2, change_id="second"))
    house.infrastructure.answer_with(MODEL, 3, errors=1.0)
    await carry_out(house.publish(MODEL, 3, change_id="failing"))
    await carry_out(house.publish(MODEL, 4, change_id="refused", value=float("nan")))
    await carry_out(house.ask(MODEL, ChangeKind.ROLLBACK, "back", generation=1))
    house.apply_fleet(
        load_house().FLEET.replace(
            "region: eu-west, hardware: cpu, units: 40", "region: eu-west, hardware: cpu, units: 0"
        )
    )
    await client.execute_workflow(
        names.SCHEDULED_REPLAN_WORKFLOW,
        ScheduledReplan(id="hourly"),
        id="replan/schedule",
        task_queue=names.LIFECYCLE_QUEUE,
    )
    await until(lambda: house.replan("hourly").state.final)
    moved = await history_of(client, names.REPLAN_ID)
    drained = await drains(client, house)
    await carry_out(house.ask(MODEL, ChangeKind.RETIRE, "retire"))
    entity = await ended_history_of(client, names.model_workflow_id(MODEL))
    await carry_out(house.ask(MODEL, ChangeKind.REPAIR, "late"))
    retired = await ended_history_of(client, names.model_workflow_id(MODEL))
    for number, split in enumerate((load_house().BY_TABLE, load_house().IN_THE_MIDDLE), 1):
        house.apply_split(CUT_MODEL, split, demand=[{"region": "us-east", "qps": 50}], rollout=ROLLOUT)
        await carry_out(house.publish_whole(CUT_MODEL, 1, change_id=f"cut-{number}"))
    await carry_out(house.ask(CUT_MODEL, ChangeKind.ROLLBACK, "cut-back", generation=1))
    house.apply(FROZEN_MODEL, demand=[{"region": "us-east", "qps": 50}], rollout=ROLLOUT)
    with house.store.begin() as unit:
        unit.put_freeze(freeze_for(FROZEN_MODEL, seconds=3), expected_version=None)
    await carry_out(house.publish(FROZEN_MODEL, 1, change_id="frozen"))
    house.apply(
        STAGED_MODEL,
        demand=[{"region": "us-east", "qps": 50}],
        rollout=ROLLOUT,
        lifecycle=[{"stage": "audit", "after": "validation", "settings": {"maxGap": 0.05}}],
    )
    await carry_out(house.publish(STAGED_MODEL, 1, change_id="staged"))
    for file, history in {"replan-turns": moved, "model": entity, "model-retired": retired, **drained}.items():
        write(file, history)
    for file, found in {
        "lifecycle-publish": names.lifecycle_workflow_id(MODEL, "second"),
        "lifecycle-rolled-back": names.lifecycle_workflow_id(MODEL, "failing"),
        "lifecycle-refused": names.lifecycle_workflow_id(MODEL, "refused"),
        "lifecycle-rollback": names.lifecycle_workflow_id(MODEL, "back"),
        "lifecycle-cut": names.lifecycle_workflow_id(CUT_MODEL, "cut-2"),
        "lifecycle-cut-back": names.lifecycle_workflow_id(CUT_MODEL, "cut-back"),
        "lifecycle-retire": names.lifecycle_workflow_id(MODEL, "retire"),
        "lifecycle-staged": names.lifecycle_workflow_id(STAGED_MODEL, "staged"),
        "lifecycle-frozen": names.lifecycle_workflow_id(FROZEN_MODEL, "frozen"),
        "transition-done": names.transition_workflow_id("second"),
        "transition-back": names.transition_workflow_id("failing"),
        "scheduled-replan": "replan/schedule",
    }.items():
        write(file, await history_of(client, found))


async def drains(client: Client, house: Any) -> dict[str, str]:
    """A region that holds nothing is drained, comes back, and is lost. Each is a run of its own."""
    house.apply_fleet()
    found = {}
    for file, ask, state in (
        ("drain", lambda unit: unit.add_drain("eu-west"), DrainState.DRAINED),
        ("drain-back", lambda unit: unit.ask_return("eu-west"), DrainState.RETURNED),
        ("drain-lost", lambda unit: unit.add_drain("eu-west", disaster=True), DrainState.DRAINED),
    ):
        with house.store.begin() as repository:
            ask(repository)
        await signal_drain(client, "eu-west")
        workflow_id = names.drain_workflow_id("eu-west")
        result = await client.get_workflow_handle(workflow_id).result()
        assert result["state"] == state.value, result
        found[file] = await history_of(client, workflow_id)
        await until(lambda: all(replan.state.final for replan in replans(house)))
    return found


def replans(house: Any) -> tuple[Replan, ...]:
    with house.store.read() as repository:
        return repository.replans()


async def history_of(client: Client, workflow_id: str) -> str:
    return (await client.get_workflow_handle(workflow_id).fetch_history()).to_json()


async def ended_history_of(client: Client, workflow_id: str) -> str:
    """The history once the run is closed."""
    await client.get_workflow_handle(workflow_id).result()
    return await history_of(client, workflow_id)


def write(file: str, history: str) -> None:
    """Where it is asked for."""
    if not sys.argv[1:] or file in sys.argv[1:]:
        text = json.dumps(scrubbed(json.loads(history)), indent=1, sort_keys=True)
        (HISTORIES / f"{file}.json").write_text(text + "\n", encoding="utf-8")


def freeze_for(model: str, *, seconds: float) -> FreezeManifest:
    """A freeze of one model from now on."""
    now = datetime.now(UTC).replace(tzinfo=None, microsecond=0)
    window = {"start": now, "duration": timedelta(seconds=seconds)}
    spec = {"reason": "a recording", "windows": [window], "scope": {"models": [model]}}
    return FreezeManifest.model_validate(
        {"apiVersion": "ipnext/v1", "kind": "Freeze", "metadata": {"name": "recording"}, "spec": spec}
    )


def scrubbed(value: Any) -> Any:
    """A history without what names a machine or a process."""
    if isinstance(value, dict):
        return {key: SCRUBBED.get(key, scrubbed(inner)) for key, inner in value.items()}
    return [scrubbed(inner) for inner in value] if isinstance(value, list) else value


async def main(address: str, root: Path) -> None:
    await until_up(address)
    client = await connect(address=address)
    house = load_house().House(root)
    house.apply_fleet()
    write_distribution(
        root / "packages", "recorded_stage", STAGE, {names.STAGE_GROUP: {"audit": "recorded_stage:stage"}}
    )
    sys.path.insert(0, str(root / "packages"))
    devfile = read_devfile()
    engine = engine_of(lambda: client, asyncio.get_running_loop())
    ours = lifecycle_activities(house.store, house.artifacts, house.infrastructure, engine, cutter=house.cutter)
    theirs = planner_activities(house.store, ThreadSolver())
    async with AsyncExitStack() as workers:
        await workers.enter_async_context(worker_of(client, devfile.group(names.LIFECYCLE_QUEUE), ours, devfile.timing))
        await workers.enter_async_context(worker_of(client, devfile.group(names.URGENT_QUEUE), ours, devfile.timing))
        await workers.enter_async_context(worker_of(client, devfile.group(names.PLANNER_QUEUE), theirs, devfile.timing))
        await record(client, house)
    house.close()


if __name__ == "__main__":
    server = read_devfile().temporal.model_copy(update={"port": free_port()})
    with tempfile.TemporaryDirectory() as directory:
        command = server_command(server, binary=temporal_binary(), state=Path(directory))
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=tether())  # noqa: PLW1509 - no other thread forks here
        try:
            asyncio.run(main(f"127.0.0.1:{server.port}", Path(directory)))
        finally:
            process.terminate()
            process.wait(20)
