"""Records the histories that the replay test reads. Run it after a gated change of a workflow's commands:

    python tests/workflows/record_histories.py

It runs real workflows on a real server, takes names, paths and process ids out, and writes histories/*.json. A change
that is not gated (workflow.patched) must not be recorded over: it breaks the runs that are under way.
"""

import asyncio
import json
import subprocess
import tempfile
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

from conftest import load_house, until, until_up
from temporalio.client import Client

from activities.solving import ThreadSolver
from ipnext import names
from ipnext.devfile import read_devfile, server_command, temporal_binary
from ipnext.infra.ports import free_port
from ipnext.infra.tether import tether
from ipnext.model.lifecycle import ChangeKind, ScheduledReplan
from ipnext.temporal import connect, submit_change
from workflows.worker import engine_of, lifecycle_activities, planner_activities, worker_of

HISTORIES = Path(__file__).parent / "histories"
MODEL = "ranker"
CUT_MODEL = "cut-ranker"
ROLLOUT = {"canary": 0.5, "maxStep": 0.5, "holdSeconds": 0.1, "deadlineSeconds": 20}
SCRUBBED = {"identity": "worker", "stackTrace": "", "binaryChecksum": "", "buildId": ""}


async def record(client: Client, house: Any) -> None:
    """Publish, publish, a failing publish, a rollback, a replan, a retirement; then a model that is cut."""

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
    await carry_out(house.ask(MODEL, ChangeKind.RETIRE, "retire"))
    for number, split in enumerate((load_house().BY_TABLE, load_house().IN_THE_MIDDLE), 1):
        house.apply_split(CUT_MODEL, split, demand=[{"region": "us-east", "qps": 50}], rollout=ROLLOUT)
        await carry_out(house.publish_whole(CUT_MODEL, 1, change_id=f"cut-{number}"))
    await carry_out(house.ask(CUT_MODEL, ChangeKind.ROLLBACK, "cut-back", generation=1))
    for file, found in {
        "model": names.model_workflow_id(MODEL),
        "lifecycle-publish": names.lifecycle_workflow_id(MODEL, "second"),
        "lifecycle-rolled-back": names.lifecycle_workflow_id(MODEL, "failing"),
        "lifecycle-refused": names.lifecycle_workflow_id(MODEL, "refused"),
        "lifecycle-rollback": names.lifecycle_workflow_id(MODEL, "back"),
        "lifecycle-cut": names.lifecycle_workflow_id(CUT_MODEL, "cut-2"),
        "lifecycle-cut-back": names.lifecycle_workflow_id(CUT_MODEL, "cut-back"),
        "lifecycle-retire": names.lifecycle_workflow_id(MODEL, "retire"),
        "transition-done": names.transition_workflow_id("second"),
        "transition-back": names.transition_workflow_id("failing"),
        "replan": names.REPLAN_ID,
        "scheduled-replan": "replan/schedule",
    }.items():
        history = await client.get_workflow_handle(found).fetch_history()
        text = json.dumps(scrubbed(json.loads(history.to_json())), indent=1, sort_keys=True)
        (HISTORIES / f"{file}.json").write_text(text + "\n", encoding="utf-8")


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
    devfile = read_devfile()
    engine = engine_of(client, asyncio.get_running_loop())
    ours = lifecycle_activities(house.store, house.artifacts, house.infrastructure, engine, cutter=house.cutter)
    theirs = planner_activities(house.store, ThreadSolver())
    async with AsyncExitStack() as workers:
        await workers.enter_async_context(worker_of(client, devfile.group(names.LIFECYCLE_QUEUE), ours))
        await workers.enter_async_context(worker_of(client, devfile.group(names.PLANNER_QUEUE), theirs))
        await record(client, house)
    house.close()


if __name__ == "__main__":
    server = read_devfile().temporal.model_copy(update={"port": free_port()})
    with tempfile.TemporaryDirectory() as directory:
        command = server_command(server, binary=temporal_binary(), state=Path(directory), with_ui=False)
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, preexec_fn=tether())  # noqa: PLW1509 - no other thread forks here
        try:
            asyncio.run(main(f"127.0.0.1:{server.port}", Path(directory)))
        finally:
            process.terminate()
            process.wait(20)
