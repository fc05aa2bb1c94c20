"""Ports and processes of the embedded platform."""

import os
import signal
import socket
import stat
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path

import pytest

from ipnext.components.settings import ComponentSettings
from ipnext.dev import children
from ipnext.dev.certificates import DevCertificates
from ipnext.dev.children import STEADY_SECONDS, Child, Family
from ipnext.dev.platform import BEYOND_DRAINS_SECONDS, DevPlatform, StatePaths, ending_seconds, lock_state, run
from ipnext.dev.ports import PortInUse, choose
from ipnext.dev.stores import EMBEDDED_FLEET, Stores, prepare, read_fleet
from ipnext.errors import Conflict, InvalidInput, Unavailable
from ipnext.infra.agent.desired_state import DesiredState
from ipnext.model.deployment.deployment import Deployment, DeploymentKey
from ipnext.model.lifecycle.workflow_namespace import WorkflowNamespace
from ipnext.settings import dev_settings
from ipnext.store.store import Store
from tests.waiting import PATIENCE_SECONDS, until

STUBBORN = (
    "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('up', flush=True); time.sleep(600)"
)


def child(directory: Path, program: str, *, grace: float = 60.0, unhurried: bool = False) -> Child:
    command, log = [sys.executable, "-c", program], directory / "child.log"
    return Child("child", command, environment={}, log=log, grace_seconds=grace, unhurried=unhurried)


@pytest.mark.usefixtures("listeners")
def test_ports_are_remembered_and_a_taken_one_is_named(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    wanted = {"api": port, "agent": None}
    first = choose(wanted, remembered=tmp_path / "ports.json", free_ports=False)
    assert first["api"] == port
    assert choose(wanted, remembered=tmp_path / "ports.json", free_ports=False) == first
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", port))
        taken.listen()
        with pytest.raises(PortInUse, match=rf"{port} \(api\)"):
            choose(wanted, remembered=tmp_path / "ports.json", free_ports=False)
        assert choose(wanted, remembered=tmp_path / "ports.json", free_ports=True)["api"] != port


@pytest.mark.usefixtures("subprocesses")
def test_two_platforms_that_start_together_take_different_ports(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    picks = (
        "import sys; from pathlib import Path; from ipnext.dev.ports import choose; "
        f"print(choose({{'api': {port}}}, remembered=Path(sys.argv[1]), free_ports=True)['api'], flush=True); "
        "sys.stdin.read()"
    )
    platforms = [
        subprocess.Popen(
            [sys.executable, "-c", picks, str(tmp_path / f"{n}.json")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for n in range(3)
    ]
    try:
        picked = [int(platform.stdout.readline()) for platform in platforms if platform.stdout]
        assert len(set(picked)) == 3
        with pytest.raises(PortInUse, match=rf"{port} \(api\)"):
            choose({"api": port}, remembered=tmp_path / "mine.json", free_ports=False)
    finally:
        for platform in platforms:
            platform.communicate("")


@pytest.mark.usefixtures("subprocesses")
def test_a_process_that_is_killed_is_started_again(tmp_path: Path) -> None:
    family = Family()
    running = child(tmp_path, "import time; time.sleep(600)")
    family.start(running)
    try:
        assert running.process is not None
        first = running.process.pid
        os.kill(first, signal.SIGKILL)
        until(lambda: family.tend() or (running.process.pid != first and running.poll() is None))
    finally:
        family.stop()
    assert running.poll() is not None


@pytest.mark.usefixtures("subprocesses")
def test_a_process_that_ends_is_started_again_at_once_and_later_where_it_keeps_ending_soon(tmp_path: Path) -> None:
    dying = child(tmp_path, "raise SystemExit(1)")
    dying.start()
    for ran, wait in ((1.0, 0.0), (1.0, 0.2), (1.0, 0.4), (STEADY_SECONDS + 1, 0.0), (1.0, 0.2)):
        until(lambda: dying.poll() is not None)
        ended, now = dying.process, dying.started_at + ran
        dying.restart_when_due(now)
        assert (dying.process is not ended) == (wait == 0.0)
        if wait:
            dying.restart_when_due(now + 0.9 * wait)
            assert dying.process is ended
            dying.restart_when_due(now + wait)
            assert dying.process is not ended
    dying.stop()


@pytest.mark.usefixtures("subprocesses")
def test_processes_of_one_command_end_side_by_side(tmp_path: Path) -> None:
    """Each ends only once both were asked: one after the other would have to be killed."""
    program = (
        "import pathlib, signal, sys, time\n"
        f"log = pathlib.Path({str(tmp_path / 'child.log')!r})\n"
        "def end(*_):\n"
        "    signal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "    print('asked', flush=True)\n"
        "    while log.read_text().count('asked') < 2:\n"
        "        time.sleep(0.01)\n"
        "    sys.exit()\n"
        "signal.signal(signal.SIGTERM, end); print('up', flush=True); time.sleep(600)"
    )
    family, pair = Family(), [child(tmp_path, program) for _ in range(2)]
    family.start(*pair)
    until(lambda: pair[0].last_lines(9).count("up") == 2)
    family.stop()
    assert [process.poll() for process in pair] == [0, 0]


@pytest.mark.usefixtures("subprocesses")
def test_processes_that_finish_what_they_have_are_asked_once_and_together_and_end_at_once_when_hurried(
    tmp_path: Path,
) -> None:
    program = (
        "import signal, sys, time\n"
        "def end(*_):\n"
        "    signal.signal(signal.SIGTERM, lambda *_: sys.exit())\n"
        "    print('asked', flush=True)\n"
        "signal.signal(signal.SIGTERM, end); print('up', flush=True)\n"
        "while True: time.sleep(600)  # "
    )
    family, pair = Family(), [child(tmp_path, program + name, grace=600, unhurried=True) for name in "ab"]
    family.start(*pair)
    until(lambda: pair[0].last_lines(9).count("up") == 2)
    stopping = threading.Thread(target=family.stop)
    stopping.start()
    until(lambda: pair[0].last_lines(9).count("asked") == 2)
    assert [process.poll() for process in pair] == [None, None]
    family.hurry()
    stopping.join(PATIENCE_SECONDS)
    assert [process.poll() for process in pair] == [0, 0]


@pytest.mark.parametrize("count", ["0", "17", "two"])
def test_a_number_of_workers_that_makes_no_sense_is_refused_by_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, count: str
) -> None:
    monkeypatch.setenv("IPNEXT_DEV_WORKERS", count)
    with pytest.raises(InvalidInput, match="IPNEXT_DEV_WORKERS"):
        run(dev_settings(), state=tmp_path / "state")
    assert not (tmp_path / "state").exists()


@pytest.mark.usefixtures("subprocesses")
def test_a_process_that_ignores_sigterm_is_killed_after_its_grace(tmp_path: Path) -> None:
    stubborn = child(tmp_path, STUBBORN, grace=0.2)
    stubborn.start()
    until(lambda: "up" in stubborn.last_lines())
    stubborn.stop()
    assert stubborn.poll() == -signal.SIGKILL


@pytest.mark.usefixtures("subprocesses")
def test_the_grace_of_processes_that_end_side_by_side_passes_for_all_at_once(tmp_path: Path) -> None:
    family, pair = Family(), [child(tmp_path, f"{STUBBORN}  # {name}", grace=0.2, unhurried=True) for name in "ab"]
    family.start(*pair)
    until(lambda: pair[0].last_lines(9).count("up") == 2)
    stop, asked = pair[1].stop, []
    pair[1].stop = lambda: asked.append(pair[0].killed_after) or stop()  # type: ignore[method-assign]
    family.stop()
    assert asked[0] == pair[0].killed_after is not None, "asked before the other one was waited for"
    assert [process.poll() for process in pair] == [-signal.SIGKILL, -signal.SIGKILL]


@pytest.mark.usefixtures("subprocesses")
def test_a_process_that_ignores_two_sigterms_is_killed_soon(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(children, "HURRIED_SECONDS", 0.1)
    family, stubborn = Family(), child(tmp_path, STUBBORN, grace=600, unhurried=True)
    family.start(stubborn)
    until(lambda: "up" in stubborn.last_lines())
    stopping = threading.Thread(target=family.stop)
    stopping.start()
    until(lambda: stubborn.killed_after is not None)
    family.hurry()
    stopping.join(PATIENCE_SECONDS)
    assert stubborn.poll() == -signal.SIGKILL


@pytest.mark.parametrize(
    ("drains", "environment", "limit"),
    [
        ([], {}, 10 + 10 + BEYOND_DRAINS_SECONDS),
        ([3.0, 300.0, None], {}, 300 + 10 + BEYOND_DRAINS_SECONDS),
        ([3.0], {"IPNEXT_AGENT_GRACE_SECONDS": "20"}, 3 + 40 + BEYOND_DRAINS_SECONDS),
        ([3.0, 300.0], {"IPNEXT_AGENT_SHUTDOWN_DRAIN_SECONDS": "2"}, 2 + 10 + BEYOND_DRAINS_SECONDS),
        ([3.0], {"IPNEXT_AGENT_GRACE_SECONDS": "soon"}, 300 + BEYOND_DRAINS_SECONDS),
    ],
)
def test_an_agent_may_take_as_long_as_the_longest_drain_of_what_it_runs_and_its_own_end(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    drains: list[float | None],
    environment: dict[str, str],
    limit: float,
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    wanted = DesiredState(tmp_path / "wanted")
    for number, drain in enumerate(drains):
        key = DeploymentKey(model=f"m{number}", part="p", region="eu", hardware="cpu")
        wanted.put_deployment(Deployment(key=key, replicas=1, engine="vllm", units=1, qps=1, drain_seconds=drain))
    assert ending_seconds(tmp_path) == limit


@pytest.mark.usefixtures("subprocesses")
def test_what_does_not_come_up_is_named_with_the_end_of_its_log(tmp_path: Path) -> None:
    family = Family()
    failing = child(tmp_path, "raise SystemExit('no database')")
    family.start(failing)
    try:
        until(lambda: "no database" in failing.last_lines())
        with pytest.raises(Unavailable, match=r"the thing was not ready(.|\n)*no database"):
            family.wait_until(lambda: False, what="the thing", limit_seconds=1.0)
    finally:
        family.stop()


@pytest.mark.usefixtures("subprocesses")
def test_a_process_that_says_that_it_can_not_start_is_not_waited_for(tmp_path: Path) -> None:
    family = Family()
    family.start(child(tmp_path, "print('that record is not yours', flush=True); raise SystemExit(2)"))
    try:
        with pytest.raises(Conflict, match=r"child can't start(.|\n)*that record is not yours"):
            family.wait_until(lambda: False, what="the thing", limit_seconds=PATIENCE_SECONDS)
    finally:
        family.stop()


def test_a_state_directory_has_one_holder_who_is_named(tmp_path: Path) -> None:
    with (
        lock_state(tmp_path / "state"),
        pytest.raises(Conflict, match=str(os.getpid())),
        lock_state(tmp_path / "state"),
    ):
        pass


@pytest.mark.parametrize("mode", [0o777, 0o702, 0o770])
def test_a_state_directory_that_others_may_write_into_is_refused(tmp_path: Path, mode: int) -> None:
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(mode)
    with pytest.raises(Conflict, match="chmod 700"), lock_state(state):
        pass
    assert not list(state.iterdir())


def test_other_users_can_not_enter_a_state_directory_whatever_its_mode_was(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    state.chmod(0o755)
    with lock_state(state):
        assert stat.S_IMODE(state.stat().st_mode) == 0o700
        state.chmod(0o710)  # as of hosts with a user of their own
        with pytest.raises(Conflict), lock_state(state):
            pass
        assert stat.S_IMODE(state.stat().st_mode) == 0o710


def test_a_fleet_file_that_holds_no_fleet_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(InvalidInput, match=r"nowhere\.yaml"):
        read_fleet(tmp_path / "nowhere.yaml")
    empty = tmp_path / "model.yaml"
    empty.write_text((Path(__file__).parents[3] / "examples/two-towers/model.yaml").read_text())
    with pytest.raises(InvalidInput, match="must hold one manifest of kind Fleet, it holds 0"):
        read_fleet(empty)


@pytest.mark.usefixtures("listeners")
def test_the_logs_of_the_platform_are_looked_after_while_it_is_tended(tmp_path: Path) -> None:
    log = tmp_path / "logs" / "worker-7.log"
    log.parent.mkdir()
    log.write_text("long ago")
    os.utime(log, (0, 0))
    stores = Stores.of(tmp_path, dev_settings())
    certificates = DevCertificates(tmp_path / "certificates", (), ComponentSettings(), dev_settings())
    platform = DevPlatform(
        StatePaths(tmp_path), None, (), stores=stores, certificates=certificates, free_ports=True, workers=1
    )
    stop = threading.Event()
    tending = threading.Thread(target=platform.tend, args=(stop,), daemon=True)
    tending.start()
    until(lambda: not log.exists())
    stop.set()
    tending.join(PATIENCE_SECONDS)
    assert not tending.is_alive()


@pytest.mark.usefixtures("listeners")
def test_agents_of_the_platform_end_their_region_at_sigterm_whatever_its_environment_says(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("IPNEXT_AGENT_SIGTERM", "leave")
    stores = Stores.of(tmp_path, dev_settings())
    certificates = DevCertificates(tmp_path / "certificates", ("eu",), ComponentSettings(), dev_settings())
    platform = DevPlatform(
        StatePaths(tmp_path), None, ("eu",), stores=stores, certificates=certificates, free_ports=True, workers=1
    )
    agent = platform._agent("eu")
    assert {**os.environ, **agent.environment}["IPNEXT_AGENT_SIGTERM"] == "end"


def test_a_state_directory_keeps_to_the_stores_that_it_was_begun_on(tmp_path: Path) -> None:
    state = tmp_path / "state"
    state.mkdir()
    own, other = Stores.of(state, dev_settings()), dev_settings(dev_database_url=f"sqlite:///{tmp_path}/other.db")
    for _ in range(2):
        assert prepare(state, own, None) == ("us-east", "eu-west")
    refusal = r"begun with its record in sqlite:///.*state/ipnext\.db, not sqlite:///.*other\.db"
    with pytest.raises(Conflict, match=refusal):
        prepare(state, Stores.of(state, other), None)
    (state / "stores.json").unlink()  # as a version left it that did not write it
    with pytest.raises(Conflict, match=refusal):
        prepare(state, Stores.of(state, other), None)
    assert not (tmp_path / "other.db").exists()
    assert prepare(state, own, None) == ("us-east", "eu-west")
    (state / "stores.json").write_text("{")
    with pytest.raises(InvalidInput, match=r"stores\.json: is no JSON"):
        prepare(state, own, None)
    (state / "stores.json").unlink()
    prepare(state, own, None)
    moved = state.rename(tmp_path / "moved")  # the record names snapshots by their place
    with pytest.raises(Conflict, match="begun with its record in"):
        prepare(moved, Stores.of(moved, dev_settings()), None)


def test_a_new_state_directory_takes_no_record_that_another_platform_has(tmp_path: Path) -> None:
    first, second, third = (tmp_path / name for name in ("first", "second", "third"))
    for state in (first, second, third):
        state.mkdir()
    stores = Stores(f"sqlite:///{tmp_path}/shared.db", f"file://{tmp_path}/artifacts")
    fleet = tmp_path / "fleet.yaml"
    fleet.write_text(EMBEDDED_FLEET.read_text().replace("us-east", "us-west"))
    prepare(first, stores, None)
    prepare(second, stores, None)  # nobody has served it yet
    with closing(Store.open(stores.database_url)) as store:
        with store.begin() as repository:
            repository.belong_to(WorkflowNamespace(id="7f", name="default", address="there:7233"))
        with pytest.raises(
            Conflict, match=r"--database-url .*shared\.db belongs to another platform.*there:7233.*third is new"
        ):
            prepare(third, stores, fleet)
        with store.read() as repository:
            assert repository.fleet().spec.regions == ("us-east", "eu-west")
    assert not (third / "stores.json").exists()
    assert prepare(first, stores, None) == ("us-east", "eu-west")
