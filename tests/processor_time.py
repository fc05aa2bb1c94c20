"""What the tests cost, by tier, file and test: a pytest plugin that tests/conftest.py loads.

With `--durations`, the summary names the files and tests that took most processor time beside those that took longest:
the time of a test on a busy machine says more about its neighbors than about itself. On Linux the processes that a test
started count while they run, so that each test of a package has its share of the Temporal server. What those have
started in turn counts once it has ended and was waited for: that of a platform for the test with which it ends.
"""

import os
import resource
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from tests.tiers import TIERS

MOST = 40
"""Files, and tests, that the summary names."""
SPENT = pytest.StashKey[Counter[str]]()
"""Processor seconds by file and by tier; of all processes, in the one that writes the summary."""
OUTPUT = "processor_time"
THREADS = Path("/proc/self/task")
TICKS_PER_SECOND = os.sysconf("SC_CLK_TCK")


def spent_seconds() -> float:
    """Return the processor seconds, of user and system, of this process, its children and those they waited for."""
    used = [resource.getrusage(who) for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    return sum(one.ru_utime + one.ru_stime for one in used) + sum(map(seconds_of, running_children()))


def running_children() -> list[str]:
    """Return the ids of the processes that this one started and has not waited for; none elsewhere than on Linux."""
    found = []
    for thread in THREADS.glob("*/children"):
        with suppress(OSError):  # the thread has ended
            found += thread.read_text().split()
    return found


def seconds_of(process: str) -> float:
    """Return what a process took, with the children it waited for; nothing if it ended meanwhile."""
    try:
        fields = Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return 0.0
    return sum(map(int, fields[11:15])) / TICKS_PER_SECOND


def pytest_configure(config: pytest.Config) -> None:
    """Begin with what the imports took so far."""
    config.stash[SPENT] = Counter()


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[Any]:
    """Count what a test takes with its fixtures."""
    before = spent_seconds()
    try:
        return (yield)
    finally:
        taken = spent_seconds() - before
        tier = next((name for name in TIERS if item.get_closest_marker(name)), "none")
        file = item.nodeid.partition("::")[0]
        item.config.stash[SPENT].update({f"tier {tier}": taken, file: taken, item.nodeid: taken})


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand over to the process that writes the summary; the rest of this process's time is imports and collection."""
    spent = session.config.stash[SPENT]
    spent["imports, collection and others"] = spent_seconds() - sum(of_tiers(spent).values())
    if hasattr(session.config, "workeroutput"):
        session.config.workeroutput[OUTPUT] = dict(spent)


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Add what one of several processes took; one that crashed tells nothing."""
    node.config.stash[SPENT].update(getattr(node, "workeroutput", {}).get(OUTPUT, {}))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    """Write the table."""
    spent = config.stash[SPENT]
    if config.getoption("durations") is None or not spent:
        return
    terminalreporter.section(f"processor time, in seconds: tiers, and the {MOST} files and tests that took most")
    for line in summarize(spent):
        terminalreporter.write_line(line)


def of_tiers(spent: Counter[str]) -> Counter[str]:
    """Return the part of the counts that is by tier."""
    return Counter({name: taken for name, taken in spent.items() if name.startswith("tier ")})


def summarize(spent: Counter[str]) -> list[str]:
    """Return a line for each tier, for what is no test, and for the files and tests that took most; the most first."""
    tiers = of_tiers(spent)
    files = Counter({name: taken for name, taken in spent.items() if name.endswith(".py")})
    tests = Counter({name: taken for name, taken in spent.items() if "::" in name})
    others = spent.keys() - tiers.keys() - files.keys() - tests.keys()
    rest = Counter({name: spent[name] for name in others})
    ranked = [*tiers.most_common(), *rest.most_common(), *files.most_common(MOST), *tests.most_common(MOST)]
    return [f"{taken:8.1f}  {name}" for name, taken in ranked]
