"""The keeper: what it runs ends with its parent, whatever it has started and wherever that put itself."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from serving.genai.engine import process_reaper
from tests.processes import gone
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.usefixtures("subprocesses")

FAMILY = """
import subprocess, sys, time
for apart in (False, True):
    subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(600)"], start_new_session=apart)
print("up", flush=True)
time.sleep(600)
"""


def kept(*command, **more):
    pipes = more | {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    return subprocess.Popen([sys.executable, "-S", process_reaper.__file__, *command], start_new_session=True, **pipes)


@pytest.fixture
def family():
    process = kept(sys.executable, "-S", "-c", FAMILY)
    assert process.stdout.readline() == b"up\n"
    processes = until(
        lambda: (found := psutil.Process(process.pid).children(recursive=True)) and len(found) == 3 and found
    )
    yield process, processes
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()
    for each in processes:
        if each.is_running():
            each.kill()


def test_all_ends_when_the_other_end_of_its_input_closes(family):
    process, processes = family
    process.stdin.close()
    process.wait(PATIENCE_SECONDS)
    until(lambda: gone(processes))


def test_all_ends_when_the_command_dies(family):
    process, processes = family
    psutil.Process(process.pid).children()[0].kill()
    assert process.wait(PATIENCE_SECONDS) == -signal.SIGKILL
    until(lambda: gone(processes))


def test_all_of_its_group_ends_with_a_keeper_that_is_killed(family):
    process, processes = family
    group = [each for each in processes if os.getpgid(each.pid) == process.pid]
    assert len(group) == 2  # the third has put itself into a session of its own
    process.kill()
    until(lambda: gone(group))


def test_sigterm_goes_to_the_command_and_its_status_comes_back():
    process = kept("sh", "-c", "trap 'exit 7' TERM; echo up; while :; do sleep 0.05; done")
    assert process.stdout.readline() == b"up\n"
    process.terminate()
    assert process.wait(PATIENCE_SECONDS) == 7
    process.stdin.close()
    process.stdout.close()


LATE = """
import signal, sys, time
sys.path.insert(0, sys.argv.pop(1))
import process_reaper
real = signal.signal
def late(*given):
    time.sleep(1)
    return real(*given)
signal.signal = late
process_reaper.main(sys.argv[1:])
"""


def test_a_sigterm_before_the_keeper_has_its_handlers_goes_to_the_command():
    """A busy machine runs the command first."""
    directory = str(Path(process_reaper.__file__).parent)
    command = ("sh", "-c", "trap 'exit 7' TERM; echo up; while :; do sleep 0.05; done")
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE}
    process = subprocess.Popen([sys.executable, "-S", "-c", LATE, directory, *command], start_new_session=True, **pipes)
    assert process.stdout.readline() == b"up\n"
    process.terminate()
    assert process.wait(PATIENCE_SECONDS) == 7
    process.stdin.close()
    process.stdout.close()


def test_a_program_that_is_not_there_is_told():
    process = kept("/no/such/program", stderr=subprocess.STDOUT)
    assert b"/no/such/program cannot be run" in process.stdout.readline()
    assert process.wait(PATIENCE_SECONDS) == 127
    process.stdin.close()
    process.stdout.close()


def test_no_module_beside_it_has_the_name_of_one_that_it_imports():
    """It runs as a file, so Python looks for modules in its folder first."""
    beside = {path.stem for path in Path(process_reaper.__file__).parent.glob("*.py")}
    assert beside & sys.stdlib_module_names == set()
