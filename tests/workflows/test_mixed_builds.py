"""API and workers of two builds at once, both ways round, under load: nothing is refused, nothing is lost.

The newer build is this one with a field more in every value and a revision more of the schema (next_build.py). The schema is the
newer one in each case, as it is once the first worker of a new build has started.
"""

import asyncio
import contextlib
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ipnext.client import Client
from ipnext.errors import Unavailable
from ipnext.infra.ports import free_port
from ipnext.infra.tether import tether
from ipnext.model.lifecycle import ChangeState
from ipnext.model.manifest import ModelManifest
from ipnext.store.migrating import schema_range
from tests.waiting import PATIENCE_SECONDS, until

HERE = Path(__file__).parent
MODELS = 2


@pytest.fixture
def start(house, served_infrastructure, temporal_address, tmp_path):
    """Start a program as `this` or as the `next` build."""
    started = []
    port = free_port()
    environment = {
        **os.environ,
        "IPNEXT_DATABASE_URL": f"sqlite:///{house.root}/ipnext.db",
        "IPNEXT_ARTIFACTS_URI": house.artifacts.uri,
        "IPNEXT_API_PORT": str(port),
        "IPNEXT_AGENTS": "{}",
        "TEMPORAL_ADDRESS": temporal_address,
    }

    def command(build, program, *arguments):
        if build == "next":
            return [sys.executable, str(HERE / "next_build.py"), str(tmp_path / "next-migrations"), program, *arguments]
        return [sys.executable, *([] if program.endswith(".py") else ["-m"]), program, *arguments]

    def begin(build, what):
        if what == "api":
            program = ("ipnext.api",)
        else:
            program = (str(HERE / "killable_worker.py"), str(house.root), served_infrastructure, temporal_address)
        with (tmp_path / f"{what}-{build}.log").open("ab") as log:
            started.append(
                subprocess.Popen(
                    command(build, *program),
                    env=environment,
                    stdout=log,
                    stderr=log,
                    preexec_fn=tether(),  # noqa: PLW1509 - no other thread forks here
                )
            )

    subprocess.run(command("next", "migrate", environment["IPNEXT_DATABASE_URL"]), env=environment, check=True)
    client = Client(f"http://127.0.0.1:{port}")
    yield begin, client
    client.close()
    for process in started:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        process.wait()


def answers(client):
    with contextlib.suppress(Unavailable):
        return client.readiness()


@pytest.mark.parametrize(
    ("api", "workers"),
    [("this", ("next",)), ("next", ("this",)), ("this", ("this", "next"))],
    ids=lambda builds: "+".join(builds) if isinstance(builds, tuple) else builds,
)
async def test_publishes_go_through_while_builds_are_mixed(house, kit, model, start, tmp_path, api, workers):
    begin, client = start
    found = schema_range(house.store._engine)
    assert (found.version, found.compatible) == ("9001", True)
    for build in workers:
        begin(build, "worker")
    begin(api, "api")
    logs = lambda: "\n".join(p.read_text()[-3000:] for p in tmp_path.glob("*.log"))  # noqa: E731
    await asyncio.to_thread(until, lambda: answers(client), why=logs, every_seconds=0.5)

    names = [f"{model}-{number}" for number in range(MODELS)]
    snapshots = {}
    for seed in (1, 2):
        sparse = kit.write_snapshot(tmp_path / f"sparse-{seed}", kit.SPARSE, kit.weights(seed))
        dense = kit.write_snapshot(tmp_path / f"dense-{seed}", kit.DENSE, kit.weights(seed + 1000))
        snapshots[seed] = {"sparse": sparse, "dense": dense}

    def life(name: str) -> list[ChangeState]:
        rollout = {"canary": 0.5, "maxStep": 1, "holdSeconds": 0, "deadlineSeconds": 180}
        demand = [{"region": "us-east", "qps": 35}, {"region": "eu-west", "qps": 18}]
        client.apply(ModelManifest.model_validate(kit.manifest(name, rollout=rollout, demand=demand)))
        ended = []
        for seed in (1, 2):
            change = client.publish(name, snapshots[seed], change_id=f"{name}-{seed}")
            end = client.wait_change(change.id, PATIENCE_SECONDS)
            assert end.state is ChangeState.DONE, (end.message, logs())
            ended.append(end.state)
        change = client.rollback(name, change_id=f"{name}-back")
        return [*ended, client.wait_change(change.id, PATIENCE_SECONDS).state]

    with ThreadPoolExecutor(MODELS) as pool:
        loop = asyncio.get_running_loop()
        ends = await asyncio.gather(*(loop.run_in_executor(pool, life, name) for name in names))

    assert ends == [[ChangeState.DONE] * 3] * MODELS, logs()
    assert {frozenset(house.shares(name)["us-east"].items()) for name in names} == {frozenset({(1, 1.0)})}
    for name in names:
        assert client.model(name).status.serving_generation == 1
        assert [change.state for change in client.changes(name)] == [ChangeState.DONE] * 3
    assert client.readiness().stuck_changes == 0
    assert "change_stuck" not in logs()
    assert "outbox_failed" not in logs()
