"""Tiers of the tests and the guard of the pure ones: a pytest plugin that tests/conftest.py loads.

The tier of a test follows from the fixtures that it uses: see `RULES`. A test (or fixture) that starts processes or
listens on a port by itself requests the fixture `subprocesses` or `listeners`.
"""

import multiprocessing.util
import socket
import sys
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import urllib3.util.connection  # noqa: F401 - it takes a port as it is imported: no test is to be the first one
from hypothesis import HealthCheck, settings
from temporalio.bridge.testing import EphemeralServer

FAST, CI, FULL = "fast", "ci", "full"
"""Profiles: of `make test`, of `make test-all`, and of every other run."""
EXAMPLES = {FAST: 10, CI: 10}
"""Most examples of a property by profile; the profile `full` has as many as the property asks for."""
settings.register_profile(FULL, settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow])
for _name, _most in EXAMPLES.items():
    settings.register_profile(_name, settings.get_profile(FULL), max_examples=_most)
settings.load_profile(FULL)

STARTS = frozenset({"subprocess.Popen", "os.fork", "os.forkpty", "os.posix_spawn", "os.system"})
"""Audit events of the start of a process; asyncio's subprocesses are of the first."""
WATCHED = STARTS | {"socket.bind"}


@dataclass(frozen=True)
class Rule:
    """What puts a test into a tier: one of these markers or of these fixtures."""

    markers: frozenset[str]
    fixtures: frozenset[str] = frozenset()


PURE = "pure"
RULES = {
    "nemesis": Rule(frozenset({"nemesis"})),
    "genai": Rule(frozenset({"genai"}), frozenset({"vllm", "plain_vllm"})),
    "e2e": Rule(frozenset({"e2e", "browser"}), frozenset({"platforms"})),
    "integration": Rule(frozenset({"integration", "postgres", "s3"}), frozenset({"subprocesses", "listeners"})),
}
"""By tier, the first that applies; a test without any is pure."""
TIERS = (*RULES, PURE)
IMPLIED = {"postgres_server": "postgres", "s3_server": "s3"}
"""Markers of fixtures, so that `-m postgres` selects every test that uses the server."""

COLLECTED = pytest.StashKey[dict[str, frozenset[str]]]()
"""Node id -> markers of every test that was collected, before `-m` deselects."""


class NotPureError(RuntimeError):
    """A pure test started a process or took a port."""


class Guard:
    """Refuses processes and ports while a pure test runs, with its fixtures.

    Records them, since code may catch the error. A fixture of a wider scope than one test ends with whichever test is
    the last: what it does then is not the test's.
    """

    def __init__(self) -> None:
        self.installed = False
        self.test: str | None = None
        self.refused: list[str] = []
        self.shared_fixtures_ending = 0

    def audit(self, event: str, arguments: tuple[Any, ...]) -> None:
        """Take one of the events `WATCHED`."""
        if self.test is None or self.shared_fixtures_ending:
            return
        if event in STARTS:
            self.refuse(f"starts a process ({event}: {arguments[:2]})", "subprocesses")
        elif arguments[0].family in {socket.AF_INET, socket.AF_INET6}:
            self.refuse(f"takes a port ({event}: {arguments[1]})", "listeners")

    def refuse(self, act: str, fixture: str) -> None:
        """NotPureError, which names the test and what to do."""
        told = (
            f"{self.test} is in the tier `{PURE}` but {act}. Request the fixture `{fixture}` in the test or in the "
            f'fixture that does so (or pytest.mark.usefixtures("{fixture}")): '
            "the test is then in the tier `integration`."
        )
        self.refused.append(told)
        raise NotPureError(told)

    def suspend(self) -> None:
        """A fixture of several tests begins to end."""
        self.shared_fixtures_ending += 1

    def resume(self) -> None:
        """It has ended."""
        self.shared_fixtures_ending -= 1


GUARD = Guard()
"""One in a process: an audit hook stays."""


def _audit(event: str, arguments: tuple[Any, ...]) -> None:
    """Pass on the few events that matter: each call of `id` is one, too.

    A function: the interpreter takes four times as long for a method.
    """
    if event in WATCHED:
        GUARD.audit(event, arguments)


def tier_of(markers: Iterable[str], fixtures: Iterable[str]) -> str:
    """The tier of a test with these markers and fixtures, those that its fixtures use included."""
    marked, used = frozenset(markers), frozenset(fixtures)
    return next((tier for tier, rule in RULES.items() if rule.markers & marked or rule.fixtures & used), PURE)


def scaled(count: int) -> int:
    """`count`, or a tenth of it in the profile `fast`."""
    return count // 10 if settings.get_current_profile_name() == FAST else count


def pytest_configure(config: pytest.Config) -> None:
    """Install the guard."""
    if GUARD.installed:
        return
    GUARD.installed = True
    sys.addaudithook(_audit)
    multiprocessing.util.spawnv_passfds = _audited(multiprocessing.util.spawnv_passfds)
    for name in ("start_dev_server", "start_test_server"):
        setattr(EphemeralServer, name, staticmethod(_audited(getattr(EphemeralServer, name))))


def _audited(spawn: Any) -> Any:
    """With an audit event.

    The start methods `spawn` and `forkserver` of multiprocessing, and native code, raise none by themselves.
    """

    def audited(*arguments: Any) -> Any:
        sys.audit("os.posix_spawn", spawn.__name__, arguments, {})
        return spawn(*arguments)

    return audited


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Mark each test by its tier, before `-m` selects. UsageError for a test that is marked as of two tiers."""
    for item in items:
        _mark(item)
    config.stash[COLLECTED] = {item.nodeid: frozenset(_markers(item)) for item in items}
    profile = settings.get_current_profile_name()
    if profile == FAST:
        _leave_out_deep(config, items)
    _limit_properties(items, EXAMPLES.get(profile))


def _markers(item: pytest.Item) -> Iterator[str]:
    return (marker.name for marker in item.iter_markers())


def _mark(item: pytest.Item) -> None:
    fixtures = getattr(item, "fixturenames", ())
    for name in IMPLIED.keys() & set(fixtures):
        item.add_marker(IMPLIED[name])
    tier = tier_of(_markers(item), fixtures)
    item.add_marker(tier)
    if others := set(TIERS) & set(_markers(item)) - {tier}:
        msg = (
            f"{item.nodeid}: in the tier {tier} by its fixtures or markers, but marked {', '.join(sorted(others))} too"
        )
        raise pytest.UsageError(msg)


def _leave_out_deep(config: pytest.Config, items: list[pytest.Item]) -> None:
    deep = [item for item in items if item.get_closest_marker("deep")]
    config.hook.pytest_deselected(items=deep)
    items[:] = [item for item in items if item not in set(deep)]


def _limit_properties(items: list[pytest.Item], most: int | None) -> None:
    """Give each property at most so many examples, and the time that a busy machine takes, whatever it asks for."""
    for item in items:
        function, cls = getattr(item, "function", None), getattr(item, "cls", None)
        if found := getattr(function, "_hypothesis_internal_use_settings", None):
            function._hypothesis_internal_use_settings = _limited(found, most)  # hypothesis has no public way
        if isinstance(found := getattr(cls, "settings", None), settings):  # a state machine
            cls.settings = _limited(found, most)


def _limited(found: settings, most: int | None) -> settings:
    return settings(
        found,
        max_examples=found.max_examples if most is None else min(found.max_examples, most),
        suppress_health_check={*found.suppress_health_check, HealthCheck.too_slow},
    )


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item) -> Iterator[None]:
    """Guard a pure test, with the fixtures that are set up for it."""
    GUARD.refused.clear()
    GUARD.test = item.nodeid if item.get_closest_marker(PURE) else None
    try:
        return (yield)
    finally:
        GUARD.test = None


@pytest.hookimpl(wrapper=True)
def pytest_fixture_setup(fixturedef: pytest.FixtureDef[Any], request: pytest.FixtureRequest) -> Iterator[Any]:
    """Lay nothing to a test that a fixture of several tests does as it ends.

    Its finalizers run from the last to the first.
    """
    if fixturedef.scope == "function":
        return (yield)
    fixturedef.addfinalizer(GUARD.resume)
    try:
        return (yield)
    finally:
        fixturedef.addfinalizer(GUARD.suspend)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(item: pytest.Item) -> Iterator[pytest.TestReport]:
    """Fail a test that caught the guard's error."""
    report = yield
    if GUARD.refused and report.passed:
        report.outcome, report.longrepr = "failed", GUARD.refused[0]
    GUARD.refused.clear()
    return report


@pytest.fixture(scope="session")
def subprocesses() -> None:
    """Requested by tests and fixtures that start processes."""


@pytest.fixture(scope="session")
def listeners() -> None:
    """Requested by tests and fixtures that listen on a port of the loopback."""


@pytest.fixture(scope="session")
def platforms() -> None:
    """Requested by tests and fixtures that start a whole platform."""
