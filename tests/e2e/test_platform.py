"""The promises of `ipnext dev` and of the README's tour, kept by real processes."""

import os
import re
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psutil
import pytest

from tests.e2e.conftest import NO_HOSTS, small_options
from tests.processes import command_line, gone, runs
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.e2e

ROOT = Path(__file__).parents[2]

ASK_SECONDS = 0.2
"""Between two requests of a client: the processors are for the platform, too, whose changes take some seconds."""

Snapshots = Callable[[float], Mapping[str, Path]]


def marks(answer: httpx.Response) -> set[float]:
    """The marks of both parts in an answer: one mark where nothing is mixed."""
    tensor = next(t for t in answer.json()["outputs"] if t["name"] == "marks")
    return set(tensor["data"])


@contextmanager
def steady_load(platform: Any) -> Iterator[list[str]]:
    """Asks both gateways all the time; yields the list of what went wrong."""
    wrong: list[str] = []
    stop = threading.Event()

    def ask(region: str) -> None:
        while not stop.wait(ASK_SECONDS):
            try:
                answer = platform.ask(region)
            except httpx.HTTPError as error:
                wrong.append(f"{region}: {error!r}")
                continue
            if answer.status_code != 200:
                wrong.append(f"{region}: {answer.status_code} {answer.text[:200]}")
            elif len(marks(answer)) != 1:
                wrong.append(f"{region}: mixed {marks(answer)}")

    threads = [threading.Thread(target=ask, args=(region,)) for region in platform.endpoints["gateways"]]
    for thread in threads:
        thread.start()
    try:
        yield wrong
    finally:
        stop.set()
        for thread in threads:
            thread.join()


def test_an_answer_bears_its_generation_and_the_snapshot_of_each_part(platform: Any) -> None:
    answer = platform.ask("us-east", x=2.0)
    assert answer.status_code == 200
    generation = answer.headers["x-ipnext-generation"]
    assert answer.json()["model_version"] == generation
    assert set(answer.headers["x-ipnext-snapshots"].split(",")) >= {f"first={generation}"}
    assert answer.headers["x-ipnext-region"] == "us-east"
    total = next(t for t in answer.json()["outputs"] if t["name"] == "sum")
    assert total["data"] == [2.0 + next(iter(marks(answer)))]


def test_a_publish_under_load_fails_no_request_and_mixes_none(platform: Any, make_snapshots: Snapshots) -> None:
    with steady_load(platform) as wrong:
        change = platform.client.publish("pair", make_snapshots(20.0))
        done = platform.client.wait_change(change.id, timeout_seconds=PATIENCE_SECONDS)
    assert done.state == "done", done
    assert wrong == []
    assert marks(platform.ask("eu-west")) == {20.0}
    assert platform.client.model("pair").status.ready


def test_a_rollback_reaches_the_former_generation(platform: Any, make_snapshots: Snapshots) -> None:
    before = platform.client.model("pair").status.serving_generation
    change = platform.client.publish("pair", make_snapshots(30.0))
    assert platform.client.wait_change(change.id, timeout_seconds=PATIENCE_SECONDS).state == "done"
    back = platform.client.rollback("pair", generation=before)
    assert platform.client.wait_change(back.id, timeout_seconds=PATIENCE_SECONDS).state == "done"
    assert platform.ask("us-east").headers["x-ipnext-generation"] == str(before)


def test_nan_weights_are_refused_before_any_traffic(platform: Any, make_snapshots: Snapshots) -> None:
    before = platform.ask("us-east").headers["x-ipnext-generation"]
    change = platform.client.publish("pair", make_snapshots(float("nan")))
    done = platform.client.wait_change(change.id, timeout_seconds=PATIENCE_SECONDS)
    assert (done.state, done.reason) == ("refused", "NonFiniteWeights")
    assert not platform.client.model("pair").status.ready
    assert platform.ask("us-east").headers["x-ipnext-generation"] == before


@pytest.mark.parametrize(
    "words",
    [("workflows.worker",), ("ipnext.api",), ("temporal", "start-dev"), ("ipnext.infra.agent", "--region")],
    ids=["worker", "api", "temporal", "agents"],
)
def test_a_run_ends_right_when_a_control_process_is_killed_in_its_middle(
    platform: Any, make_snapshots: Snapshots, words: tuple[str, ...]
) -> None:
    mark = 100.0 + len(words[0])
    parts = make_snapshots(mark)
    with steady_load(platform) as wrong:
        change = platform.client.publish("pair", parts)
        running = platform.found(*words)
        for victim in running:
            victim.kill()
        old = {victim.pid for victim in running}
        until(lambda: len({p.pid for p in platform.found(*words)} - old) == len(old))
        until(platform.answers)
        done = platform.client.wait_change(change.id, timeout_seconds=PATIENCE_SECONDS)
    assert done.state == "done", done
    assert marks(platform.ask("us-east")) == {mark}
    assert wrong == []


def test_no_process_of_a_region_is_started_again_when_its_agent_is_killed(platform: Any) -> None:
    region = "us-east"
    before = {process.pid for process in platform.found(region)}
    agent = platform.child("ipnext.infra.agent", region)
    with steady_load(platform) as wrong:
        agent.kill()
        until(lambda: {p.pid for p in platform.found("ipnext.infra.agent", region)} - {agent.pid})
        until(lambda: platform.client.model("pair").status.ready)
    after = {process.pid for process in platform.found(region)}
    assert before - {agent.pid} < after
    assert len(after) == len(before)
    assert wrong == []


def test_everything_ends_with_a_platform_that_is_killed_though_its_agents_are_dead(
    new_platform: Any, tmp_path: Path
) -> None:
    running = new_platform(tmp_path / "killed", "--free-ports", "--workers", "1", **NO_HOSTS)
    everything = running.family()
    supervisors = running.found("ipnext.infra.supervisor_process")
    assert len(supervisors) == 2
    running.process.send_signal(signal.SIGSTOP)  # it starts no agent again
    agents = running.found("ipnext.infra.agent", "--region")
    for agent in agents:
        agent.kill()
    until(lambda: gone(agents))
    assert all(map(runs, supervisors))
    logs = list(running.state.glob("regions/*/logs/supervisor.log"))
    until(
        lambda: all("tied to the owner" in log.read_text() for log in logs), why=lambda: [x.read_text() for x in logs]
    )
    for supervisor in supervisors:
        supervisor.send_signal(signal.SIGSTOP)  # it sees nothing by itself
    running.process.kill()
    running.process.wait()
    until(lambda: gone(everything), why=lambda: [command_line(p) for p in everything if runs(p)])


def test_one_worker_carries_on_while_the_other_is_dead_and_nobody_restarts_it(
    platform: Any, make_snapshots: Snapshots
) -> None:
    until(lambda: len(serving_workers(platform)) == 2)
    victim = platform.found("workflows.worker")[0]
    platform.process.send_signal(signal.SIGSTOP)
    try:
        change = platform.client.publish("pair", make_snapshots(90.0))
        victim.kill()
        assert platform.client.wait_change(change.id, timeout_seconds=PATIENCE_SECONDS).state == "done"
        assert victim.pid not in serving_workers(platform)
    finally:
        platform.process.send_signal(signal.SIGCONT)
    until(lambda: len(serving_workers(platform) - {victim.pid}) == 2)


def serving_workers(platform: Any) -> set[int]:
    """The pids of the workers that live and serve."""
    ready = {int(file.read_text() or 0) for file in platform.state.glob("worker-*.ready")}
    return ready & {process.pid for process in platform.found("workflows.worker")}


def test_everything_keeps_serving_while_the_control_plane_hangs(platform: Any) -> None:
    kinds = (("workflows.worker",), ("ipnext.api",), ("temporal", "start-dev"))
    control = [process for words in kinds for process in platform.found(*words)]
    assert len(control) == 4
    for process in control:
        process.suspend()
    try:
        with steady_load(platform) as wrong:
            time.sleep(2.0)
        assert wrong == []
    finally:
        for process in control:
            process.resume()
    until(platform.answers)


def tour() -> list[str]:
    """The commands of the section, without their remarks."""
    section = (ROOT / "README.md").read_text().split("## A tour in ten lines", 1)[1]
    block = re.search(r"```\n(.*?)```", section, re.DOTALL)
    assert block is not None
    return [line.split("  #")[0].strip() for line in block.group(1).splitlines()]


def test_the_tour_is_ten_lines_and_each_one_works(platform: Any) -> None:
    lines = tour()
    assert len(lines) == 10
    assert lines[0].startswith("ipnext dev --state")
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    environment = {**os.environ, "PATH": path, "IPNEXT_API_URL": platform.endpoints["api"], "OMP_NUM_THREADS": "1"}
    try:
        for line in lines[1:]:
            run(line, environment)
    finally:
        platform.client.wait_change(platform.client.delete("two-towers").id, timeout_seconds=PATIENCE_SECONDS)


def run(line: str, environment: dict[str, str]) -> None:
    done = subprocess.run(["bash", "-c", line], cwd=ROOT, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


def test_a_second_start_on_the_same_directory_is_refused_with_the_pid_of_the_first(platform: Any) -> None:
    second = subprocess.run(
        [sys.executable, "-m", "ipnext.cli", "dev", "--state", str(platform.state)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert second.returncode == 2
    assert str(platform.process.pid) in second.stderr
    assert "Traceback" not in second.stderr


def test_ports_in_use_are_named(tmp_path: Path) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        config = tmp_path / "dev.yaml"
        text = (Path(__file__).parents[2] / "temporal-dev.yaml").read_text()
        config.write_text(text.replace("port: 8700", f"port: {port}"))
        second = subprocess.run(
            [sys.executable, "-m", "ipnext.cli", "dev", "--state", str(tmp_path / "s"), "--config", str(config)],
            capture_output=True,
            text=True,
            check=False,
        )
    assert second.returncode == 2
    assert f"{port} (api)" in second.stderr


def test_whatever_ends_it_nothing_is_left_and_the_next_start_goes_on(
    new_platform: Any, tmp_path: Path, make_snapshots: Snapshots, pair_manifest: str
) -> None:
    state = tmp_path / "state"
    options = small_options(state, workers=2)
    running = new_platform(state, *options)
    running.client.apply(pair_manifest.replace(", {region: eu-west, qps: 50}", ""))
    first = running.client.publish("pair", make_snapshots(5.0))  # still under way when all ends
    end(running, signal.SIGINT, status=0)

    again = new_platform(state, *options)
    assert again.endpoints == {**running.endpoints, "pid": again.process.pid}
    assert again.client.wait_change(first.id, timeout_seconds=PATIENCE_SECONDS).state == "done"
    assert marks(again.ask("us-east")) == {5.0}
    second = again.client.publish("pair", make_snapshots(6.0))
    assert again.client.wait_change(second.id, timeout_seconds=PATIENCE_SECONDS).state == "done"
    end(again, signal.SIGKILL, status=-signal.SIGKILL)

    third = new_platform(state, *options)
    until(lambda: third.ask("us-east").status_code == 200)
    assert marks(third.ask("us-east")) == {6.0}
    end(third, signal.SIGTERM, status=0)


def end(running: Any, number: signal.Signals, *, status: int) -> None:
    """End a platform; every process that it had started, directly or not, must end too."""
    until(lambda: len(running.found("workflows.worker")) == 2)
    family = running.family()
    assert len(family) >= 7
    assert running.stop(number) == status
    _, alive = psutil.wait_procs(family, timeout=PATIENCE_SECONDS)
    assert [p.cmdline() for p in alive] == []
