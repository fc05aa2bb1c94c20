"""Each test is in one tier, and a pure test that starts something fails with the fixture to request in its error."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.tiers import COLLECTED, EXAMPLES, GUARD, RULES, TIERS, NotPureError, tier_of

ROOT = Path(__file__).parents[1]
BOUND = "import socket\n    s = socket.socket()\n    with s:\n        s.bind(('127.0.0.1', 0))"
STARTS = {
    "run": "import subprocess\n    subprocess.run(['true'])",
    "bound before": "Popen(['true'])",
    "posix_spawn": "import os\n    os.posix_spawn('/bin/true', ['true'], {})",
    "fork": "import os\n    os.fork() or os._exit(0)",
    "system": "import os\n    os.system('true')",
    "asyncio": "import asyncio\n    asyncio.run(asyncio.create_subprocess_exec('true'))",
    "multiprocessing fork": "import multiprocessing as m\n    m.get_context('fork').Process(target=print).start()",
    "multiprocessing spawn": "import multiprocessing as m\n    m.get_context('spawn').Process(target=print).start()",
    "multiprocessing forkserver": (
        "import multiprocessing as m\n    m.get_context('forkserver').Process(target=print).start()"
    ),
    "Temporal": (
        "import asyncio\n    from temporalio.testing import WorkflowEnvironment\n    "
        "asyncio.run(WorkflowEnvironment.start_local())"
    ),
    "executor": "import concurrent.futures as c\n    c.ProcessPoolExecutor(1).submit(print)",
    "in a thread": (
        "import threading, subprocess\n    t = threading.Thread(target=lambda: swallowed(subprocess.run, "
        "['true']))\n    t.start()\n    t.join()"
    ),
    "swallowed": "import subprocess\n    swallowed(subprocess.run, ['true'])",
    "from a fixture": "request.getfixturevalue('started')",
}
HEAD = """
import subprocess
from subprocess import Popen
import pytest


def swallowed(function, *arguments):
    try:
        function(*arguments)
    except Exception:
        pass


@pytest.fixture
def started():
    subprocess.run(["true"])
"""


def name_of(case):
    return f"test_{case.replace(' ', '_')}"


def source_of(case, code, *marks):
    """The source of a test with these marks."""
    decorators = "".join(f"@pytest.mark.{mark}\n" for mark in marks)
    return f"\n\n{decorators}def {name_of(case)}(request):\n    {code}\n"


@pytest.fixture(scope="module")
def pytest_run(tmp_path_factory, subprocesses):
    """Run pytest on a file with these tests: its output and status."""

    def run(tests, *arguments):
        root = tmp_path_factory.mktemp("tests")
        (root / "conftest.py").write_text('pytest_plugins = ["tests.tiers"]\n')
        (root / "test_some.py").write_text(HEAD + tests)
        (root / "pytest.ini").write_text(
            "[pytest]\nmarkers =\n" + "".join(f"  {m}: x\n" for m in (*TIERS, "deep", "s3"))
        )
        command = [sys.executable, "-m", "pytest", "-rA", "-p", "no:cacheprovider", *arguments]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "COLUMNS": "200"}
        done = subprocess.run(command, cwd=root, env=environment, capture_output=True, text=True, check=False)
        return done.stdout + done.stderr, done.returncode

    return run


def outcomes(output):
    """Name of a test -> PASSED, FAILED or ERROR."""
    return {name: outcome for outcome, name in re.findall(r"^(\w+) test_some\.py::(\w+)", output, re.MULTILINE)}


@pytest.fixture(scope="module")
def impure(pytest_run):
    return pytest_run("".join(source_of(*case) for case in STARTS.items()) + source_of("bound", BOUND))[0]


@pytest.mark.parametrize("case", STARTS)
def test_a_pure_test_that_starts_a_process_fails(impure, case):
    assert outcomes(impure)[name_of(case)] == "FAILED", impure
    assert f"test_some.py::{name_of(case)} is in the tier `pure` but starts a process" in impure
    assert 'pytest.mark.usefixtures("subprocesses")' in impure


def test_a_pure_test_that_takes_a_port_fails(impure):
    assert outcomes(impure)["test_bound"] == "FAILED", impure
    assert "test_some.py::test_bound is in the tier `pure` but takes a port" in impure
    assert 'pytest.mark.usefixtures("listeners")' in impure


def test_with_the_fixture_it_is_in_the_tier_integration_and_may(pytest_run):
    tests = (
        source_of("run", STARTS["run"], 'usefixtures("subprocesses")')
        + source_of("bound", BOUND, 'usefixtures("listeners")')
        + source_of("nothing", "pass")
    )
    assert outcomes(pytest_run(tests, "-m", "integration")[0]) == {"test_run": "PASSED", "test_bound": "PASSED"}
    assert outcomes(pytest_run(tests, "-m", "pure")[0]) == {"test_nothing": "PASSED"}


SHARED = """
@pytest.fixture(scope="session")
def subprocesses():
    pass

@pytest.fixture(scope="session")
def server(subprocesses):
    subprocess.run(["true"])
    yield
    subprocess.run(["true"])

@pytest.fixture(scope="module")
def of_module():
    yield
    subprocess.run(["true"])

@pytest.fixture
def of_test():
    yield
    subprocess.run(["true"])

def test_with_the_server(server, of_module):
    pass
"""


def test_what_a_shared_fixture_does_as_it_ends_is_not_laid_to_the_last_test(pytest_run):
    told, status = pytest_run(SHARED + source_of("nothing", "pass"))
    assert outcomes(told) == {"test_with_the_server": "PASSED", "test_nothing": "PASSED"}, told
    assert status == 0, told


def test_what_a_fixture_of_one_test_does_as_it_ends_is_laid_to_it(pytest_run):
    told, status = pytest_run(
        SHARED + source_of("own", "pass", 'usefixtures("of_test")') + source_of("run", STARTS["run"])
    )
    assert "ERROR test_some.py::test_own" in told
    assert outcomes(told)["test_run"] == "FAILED", told
    assert status == 1


def test_the_fast_profile_has_few_examples_and_no_deep_test(pytest_run):
    tests = """
from hypothesis import given, settings, strategies as st

seen = []

@settings(max_examples=50)
@given(st.integers())
def test_property(n):
    seen.append(n)

@pytest.mark.deep
def test_deep():
    pass

def test_count():
    print("examples:", len(seen))
"""
    fast, ci, full = (pytest_run(tests, "--hypothesis-profile", profile)[0] for profile in ("fast", "ci", "full"))
    assert outcomes(fast) == {"test_property": "PASSED", "test_count": "PASSED"}
    assert f"examples: {EXAMPLES['fast']}\n" in fast
    assert f"examples: {EXAMPLES['ci']}\n" in ci
    assert outcomes(full).keys() == outcomes(ci).keys() == {"test_property", "test_count", "test_deep"}
    assert "examples: 50\n" in full


@pytest.mark.parametrize("profile", ["ci", "full"])
def test_no_property_fails_because_its_examples_are_made_slowly(pytest_run, profile):
    tests = """
from types import SimpleNamespace
from hypothesis import HealthCheck, given, settings, strategies as st
from hypothesis.internal.conjecture import data

data.time = SimpleNamespace(perf_counter=iter(range(0, 10**9, 100)).__next__)  # each look at the clock is 100 s later

@settings(suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers())
def test_property(n):
    pass
"""
    told, status = pytest_run(tests, "--hypothesis-profile", profile)
    assert status == 0, told


def test_two_tiers_are_refused_by_name(pytest_run):
    told, status = pytest_run(source_of("two", "pass", "genai", "e2e"))
    assert status == 4
    assert "test_some.py::test_two: in the tier genai by its fixtures or markers, but marked e2e too" in told


def test_every_test_that_was_collected_is_in_one_tier(pytestconfig):
    collected = pytestconfig.stash[COLLECTED]
    of_tier = {tier: {test for test, markers in collected.items() if tier in markers} for tier in TIERS}

    assert sum(map(len, of_tier.values())) == len(collected)
    assert set().union(*of_tier.values()) == collected.keys()


def test_the_tests_on_vllm_lie_where_their_verb_looks(pytestconfig):
    places = re.search(r"^GENAI_TESTS = (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)[1].split()
    collected = pytestconfig.stash[COLLECTED]

    assert {
        test for test, markers in collected.items() if "genai" in markers and not test.startswith(tuple(places))
    } == set()
    assert all((ROOT / place).is_dir() for place in places)


def test_each_tier_has_a_verb_and_test_all_has_all_but_the_nemesis():
    verbs = dict(re.findall(r"^([a-z0-9-]+):.*\n((?:\t.*\n)+)", (ROOT / "Makefile").read_text(), re.MULTILINE))
    assert "-m pure " in verbs["test"]
    for tier in ("integration", "e2e", "genai"):
        assert re.search(rf",{tier}[,)]", verbs[f"test-{tier}"])
    assert re.findall(r"BY_FILE,\d,([^,)]*)", verbs["test-all"]) == ["not nemesis"]
    assert "nemesis" in verbs["e2e"]


@pytest.mark.parametrize(
    ("markers", "fixtures", "tier"),
    [
        ((), ("tmp_path",), "pure"),
        ((), ("tmp_path", "subprocesses"), "integration"),
        ((), ("listeners",), "integration"),
        (("postgres",), (), "integration"),
        (("browser",), ("listeners",), "e2e"),
        ((), ("platforms", "subprocesses"), "e2e"),
        ((), ("platforms", "vllm"), "genai"),
        (("nemesis",), ("platforms",), "nemesis"),
    ],
)
def test_the_first_rule_that_applies_gives_the_tier(markers, fixtures, tier):
    assert tier_of(markers, fixtures) == tier
    assert set(TIERS) == {*RULES, "pure"}


def test_the_guard_is_on_in_this_process(request):
    assert GUARD.test == request.node.nodeid
    with pytest.raises(NotPureError, match="subprocesses"):
        subprocess.run(["true"], check=True)
    GUARD.refused.clear()
