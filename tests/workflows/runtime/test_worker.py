"""The worker's composition: what it registers, what shadows it, fault points, heartbeats, the schedule."""

import asyncio
import gc
import os
import signal
import subprocess
import sys
from contextlib import closing
from datetime import UTC, datetime, timedelta

import httpx
import pytest
from temporalio import activity

from activities.planning.solver import ProcessSolver, ThreadSolver
from ipnext import names
from ipnext.devfile import read_devfile
from ipnext.errors import EXIT_BAD_INPUT, Conflict, InvalidInput, Unavailable
from ipnext.model.lifecycle.changes.change import Change, ChangeKind, ChangeState
from ipnext.model.lifecycle.workflow_namespace import WorkflowNamespace
from ipnext.settings import PlatformSettings, platform_settings
from ipnext.store.store import Store
from ipnext.temporal import connect, namespace_of, reachable, submit_change, ui_link
from tests.waiting import PATIENCE_SECONDS, eventually
from workflows import policies
from workflows.runtime.fault_injection import InjectedFault, fault_of
from workflows.runtime.package_check import check_neighbours
from workflows.worker import lifecycle_activities, planner_activities, queue_groups, solver_of, source_activities

LONGEST_RECORD = timedelta(seconds=120)
"""The most that `record_seconds` may be."""


def test_every_step_that_a_workflow_may_take_is_registered_on_its_queue(house, no_engine):
    ours = lifecycle_activities(house.store, house.artifacts, house.infrastructure, no_engine)
    ours = (*ours, *source_activities(house.store, house.artifacts, PlatformSettings()))
    theirs = planner_activities(house.store, ThreadSolver())
    registered = {
        names.LIFECYCLE_QUEUE: {activity._Definition.must_from_callable(method).name for method in ours},
        names.URGENT_QUEUE: {activity._Definition.must_from_callable(method).name for method in ours},
        names.PLANNER_QUEUE: {activity._Definition.must_from_callable(method).name for method in theirs},
    }

    named = {queue: set() for queue in registered}
    for step in policies.STEPS:
        named[step.queue or names.LIFECYCLE_QUEUE].add(step.name)

    assert named[names.URGENT_QUEUE] <= registered[names.URGENT_QUEUE], "others go there where a run is urgent"
    named[names.LIFECYCLE_QUEUE] |= named.pop(names.URGENT_QUEUE)
    assert named == {queue: registered[queue] for queue in named}


def test_every_step_has_a_total_time_or_a_reason_for_none():
    for step in policies.STEPS:
        assert (step.total is None) == bool(step.unbounded), step.name
        assert step.total is None or step.total >= (step.one_attempt or LONGEST_RECORD), step.name
    bounded = [step for step in policies.STEPS if step.unbounded == policies.BY_THE_WAVE]
    assert all(step.once().total is not None for step in bounded)


def test_our_packages_lie_beside_the_core():
    check_neighbours()


@pytest.mark.parametrize("program", ["workflows.worker", "ipnext.api.__main__"])
def test_a_program_imports_no_solver_and_no_migrations_as_it_starts(program, subprocesses):
    """They are a third of a worker's start; the solver has a process of its own, and a migration is rare."""
    heavy = ("cvxpy", "scipy", "highspy", "numba", "torch", "alembic")
    code = f"import sys, {program}; print([name for name in {heavy} if name in sys.modules])"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "[]\n"


def test_a_distribution_that_shadows_a_package_is_named(tmp_path, monkeypatch):
    (tmp_path / "shadowed_by_test").mkdir()
    (tmp_path / "shadowed_by_test" / "__init__.py").touch()
    monkeypatch.syspath_prepend(tmp_path)

    with pytest.raises(Conflict, match="shadowed_by_test"):
        check_neighbours(["shadowed_by_test"])


def test_a_fault_strikes_at_its_place_and_once(tmp_path):
    struck = []
    place = ("shift_traffic", "after")
    fault = InjectedFault(frozenset({place}), once=tmp_path / "struck", strike=lambda: struck.append(1))

    for place in (("shift_traffic", "before"), ("check_gate", "after"), ("shift_traffic", "after")) * 2:
        fault.strike_at(*place)

    assert struck == [1]


def test_each_of_several_faults_strikes_once_and_again_where_its_file_is_removed(tmp_path):
    struck = []
    places = (("shift_traffic", "after"), ("check_gate", "before"))
    fault = InjectedFault(frozenset(places), once=tmp_path / "struck", strike=lambda: struck.append(1))

    for place in places * 2:
        fault.strike_at(*place)
    assert len(struck) == 2
    (tmp_path / "struck.check_gate.before").unlink()
    for place in places * 2:
        fault.strike_at(*place)

    assert len(struck) == 3


def test_a_fault_is_read_from_the_environment_and_refused_where_it_is_unclear(tmp_path):
    assert fault_of({}) is None
    found = fault_of({"IPNEXT_FAULT": "check_gate:before", "IPNEXT_FAULT_ONCE": str(tmp_path / "once")})
    assert (found.places, found.once) == ({("check_gate", "before")}, tmp_path / "once")
    several = fault_of({"IPNEXT_FAULT": "check_gate:before,shift_traffic:after"})
    assert several.places == {("check_gate", "before"), ("shift_traffic", "after")}
    for unclear in ("check_gate", "check_gate:before,", "check_gate:during"):
        with pytest.raises(InvalidInput, match="ACTIVITY:before"):
            fault_of({"IPNEXT_FAULT": unclear})


def test_the_group_chooses_the_solver():
    group = read_devfile().group(names.PLANNER_QUEUE)

    settings = PlatformSettings()
    assert queue_groups(settings)[2] == group, "what temporal-dev.yaml says is the default"
    assert isinstance(solver_of(group, settings), ProcessSolver)
    assert isinstance(solver_of(group.model_copy(update={"executor": "threads"}), settings), ThreadSolver)


async def test_a_server_that_is_not_there_is_unavailable(kit):
    with pytest.raises(Unavailable, match=r"127\.0\.0\.1:1"):
        await connect(address="127.0.0.1:1")
    assert not await reachable(await connect(address="127.0.0.1:1", lazy=True))


def test_a_link_names_the_run_with_its_slashes_kept_apart():
    link = ui_link("http://127.0.0.1:8233/", "default", "lifecycle/ranker/c1", "run")

    assert link == "http://127.0.0.1:8233/namespaces/default/workflows/lifecycle%2Franker%2Fc1/run"


def start_worker(directory, temporal_address, **more):
    """A worker process on the record of a directory, its log beside it."""
    environment = {
        **os.environ,
        "IPNEXT_DATABASE_URL": f"sqlite:///{directory}/ipnext.db",
        "IPNEXT_ARTIFACTS_URI": f"file://{directory}/artifacts",
        "IPNEXT_WORKER_READY_FILE": str(directory / "ready"),
        "IPNEXT_AGENTS": '{"us-east": "http://127.0.0.1:1"}',
        "TEMPORAL_ADDRESS": temporal_address,
        **more,
    }
    with (directory / "log").open("wb") as out:
        return subprocess.Popen([sys.executable, "-m", "workflows.worker"], env=environment, stdout=out, stderr=out)


async def test_the_worker_process_waits_for_its_server_and_ends_on_sigterm(tmp_path, temporal_address, free_port):
    log = tmp_path / "log"
    metrics = f"127.0.0.1:{free_port}"
    process = start_worker(tmp_path, temporal_address, IPNEXT_WORKER_METRICS_ADDRESS=metrics)
    try:
        await eventually(lambda: (tmp_path / "ready").exists() or process.poll() is not None, why=log.read_text)
        assert process.poll() is None, log.read_text()

        def exported():
            return httpx.get(f"http://{metrics}/metrics", trust_env=False, timeout=60).text

        await eventually(lambda: "temporal_worker_task_slots_available" in exported(), why=exported)
        (tmp_path / "ready").unlink()
        await eventually((tmp_path / "ready").exists, why=lambda: "it is kept fresh")
        process.send_signal(signal.SIGTERM)
        assert process.wait(PATIENCE_SECONDS) == 0
        assert not (tmp_path / "ready").exists()
    finally:
        process.kill()
        process.wait()
    client = await connect(address=temporal_address)
    await client.get_schedule_handle(names.REPLAN_SCHEDULE).delete()
    with closing(Store.open(f"sqlite:///{tmp_path}/ipnext.db")) as store, store.read() as repository:
        assert repository.belongs_to() == await namespace_of(client)


@pytest.mark.parametrize("spoiled", ["another platform's", "a later version's"])
async def test_a_worker_refuses_a_record_that_is_not_its_own(tmp_path, temporal_address, spoiled):
    with closing(Store.open(f"sqlite:///{tmp_path}/ipnext.db")) as store:
        store.migrate()
        with store.begin() as repository:
            if spoiled == "another platform's":
                repository.belong_to(WorkflowNamespace(id="another", name="theirs", address="there:7233"))
                expected = "belongs to another platform: the Temporal namespace theirs (another), at there:7233"
            else:
                repository.connection().exec_driver_sql("UPDATE alembic_version SET version_num = '9999'")
                expected = "was migrated by a later version of IPnext"
    process = start_worker(tmp_path, temporal_address)
    try:
        assert await asyncio.to_thread(process.wait, PATIENCE_SECONDS) == EXIT_BAD_INPUT
    finally:
        process.kill()
        process.wait()
    told = (tmp_path / "log").read_text()
    assert expected in told
    assert "Traceback" not in told
    assert not (tmp_path / "ready").exists()


async def test_a_worker_without_agents_does_not_start_and_names_the_setting(tmp_path, temporal_address):
    process = start_worker(tmp_path, temporal_address, IPNEXT_AGENTS="{}")
    try:
        assert await asyncio.to_thread(process.wait, PATIENCE_SECONDS) == EXIT_BAD_INPUT
    finally:
        process.kill()
        process.wait()
    assert "agents (IPNEXT_AGENTS) names no region" in (tmp_path / "log").read_text()


@pytest.mark.parametrize(
    ("agents", "told"),
    [
        ('{"us-east": ""}', "agents (IPNEXT_AGENTS): Value error, region 'us-east' needs the URL of its agent"),
        ('{"us-east": "ftp://127.0.0.1"}', "http://HOST:PORT, not 'ftp://127.0.0.1'"),
        ("nonsense", "variables of mappings and lists are JSON"),
    ],
)
def test_agents_that_are_no_urls_are_refused_in_words(monkeypatch, agents, told):
    monkeypatch.setenv("IPNEXT_AGENTS", agents)
    with pytest.raises(InvalidInput) as refused:
        platform_settings()
    assert told in refused.value.message


async def test_a_submission_that_times_out_leaves_no_exception_to_the_event_loop(temporal_address, model, monkeypatch):
    monkeypatch.setattr("ipnext.temporal.SUBMIT_SECONDS", 0.2)
    client, unretrieved = await connect(address=temporal_address), []
    asyncio.get_running_loop().set_exception_handler(lambda _loop, context: unretrieved.append(context["message"]))
    change = Change(
        id=f"{model}-1",
        model=model,
        kind=ChangeKind.APPLY,
        sequence=1,
        state=ChangeState.RECORDED,
        created_at=datetime.now(UTC),
    )

    with pytest.raises(Unavailable):
        await submit_change(client, change)  # no worker runs

    gc.collect()
    assert unretrieved == []
