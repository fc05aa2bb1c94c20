"""For all tests: the long ones begin first, and files of one group run in one process.

One database to copy. vLLM if it is installed.
"""

import functools
import gc
import inspect
import os
import shutil
import ssl
import subprocess
import sys
import tempfile
from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import suppress
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any, ClassVar, Self

import httpx
import pytest
from sqlalchemy import Engine, create_engine
from sqlalchemy.dialects import registry
from sqlalchemy.dialects.sqlite.pysqlite import SQLiteDialect_pysqlite
from sqlalchemy.engine import URL
from xdist.scheduler import LoadFileScheduling
from xdist.workermanage import WorkerController

from ipnext import plugins
from ipnext.errors import LoadFailed
from ipnext.store.database import dialects
from ipnext.store.store import Store
from serving.genai.command_line.interpreter import vllm_python
from tests.connections import LAST_TURNS, end_connections
from tests.genai.support.forking_vllm import forking_vllm
from tests.lasting import Lasting
from tests.waiting import PATIENCE_SECONDS

pytest_plugins = ["tests.tiers", "tests.processor_time"]

IN_ONE_PROCESS = (
    (
        *("genai/platform/test_platform.py", "genai/platform/test_embeddings.py", "genai/platform/test_mixed_vllm.py"),
        *("genai/platform/test_swap.py", "genai/engine/test_allowances_vllm.py"),
    ),
    (
        *("genai/engine/test_vllm.py", "serving/openai/test_clients_openai.py"),
        "genai/engine/test_disaggregated_vllm.py",
    ),
    (
        *("e2e/test_platform.py", "e2e/test_faults.py", "e2e/test_replanning.py", "e2e/test_drain.py"),
        *("e2e/test_doors.py", "e2e/test_machine_details.py", "e2e/test_prediction_access.py"),
    ),
    (
        *("e2e/test_gates.py", "e2e/test_compiled.py", "e2e/test_delta.py", "e2e/test_split.py", "e2e/test_mixed.py"),
        *("e2e/test_swap.py", "e2e/test_disaggregated.py", "e2e/test_optimization.py"),
        *("e2e/test_hardware_derivatives.py", "e2e/test_nightly_retrain.py"),
    ),
)
"""Files below tests/ that run one after the other: on one platform, or on vLLM, of which memory holds few at a time."""
LONG_FIRST = (
    *(file for files in IN_ONE_PROCESS for file in files),
    *("nemesis/test_nemesis.py", "e2e", "workflows", "infra", "serving", "test_distribution.py"),
)

WITH_FILLER = 5
"""Processes, at least, of which one fills the pauses of the others."""
FILLER_NICENESS = 5
GO = {"GOMAXPROCS": "1", "GOGC": "off", "GOMEMLIMIT": "600MiB", "GODEBUG": "adaptivestackstart=1"}
"""For Temporal: one thread, no garbage collection below a size, stacks that begin as large as they mostly become.

With it, tests of workflows take a tenth less processor time than with one thread and few collections.
"""
SELDOM = 20_000
"""New objects after which garbage is collected."""
LASTING = pytest.StashKey[Lasting]()
NEEDS_VLLM = "needs vLLM: make setup-genai"


class GroupScheduling(LoadFileScheduling):
    """Each process gets whole files, and the files of a group together.

    The long files wait for much, and come first. Of five processes or more, the last one takes what is left of the
    short ones, so that no processor idles while others wait.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = super()._split_scope(nodeid)
        return group_of(Path(file))

    def _assign_work_unit(self, node: WorkerController) -> None:
        if is_filler(node.workerinput):
            self.workqueue.move_to_end(next(reversed(self.workqueue)), last=False)
        super()._assign_work_unit(node)


def is_filler(worker: Mapping[str, Any]) -> bool:
    """Whether a process takes the short files first."""
    return worker["workercount"] >= WITH_FILLER and worker["workerid"] == f"gw{worker['workercount'] - 1}"


def pytest_configure(config: pytest.Config) -> None:
    """What `ipnext dev` and `ipnext login` write down goes into a file of this run, not of this user.

    S3's client asks no cloud for credentials. A process that wakes up waits for the end of another one's time slice:
    pure tests beside each other take a tenth less processor time, since they change places less often.
    """
    os.environ["AWS_EC2_METADATA_DISABLED"] = "true"
    os.environ |= GO
    if sys.platform == "linux":
        with suppress(PermissionError):  # in a sandbox that forbids it, tests take that tenth
            os.sched_setscheduler(0, os.SCHED_BATCH, os.sched_param(0))
    if is_filler(getattr(config, "workerinput", {"workercount": 0})):
        os.nice(FILLER_NICENESS)
    if not hasattr(config, "workerinput") and "IPNEXT_CREDENTIALS_FILE" not in os.environ:
        directory = tempfile.mkdtemp(prefix="ipnext-credentials-")
        os.environ["IPNEXT_CREDENTIALS_FILE"] = f"{directory}/credentials.json"
        config.add_cleanup(lambda: shutil.rmtree(directory, ignore_errors=True))


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_make_scheduler(config: pytest.Config, log: object) -> GroupScheduling | None:
    """For `--dist loadfile`. By itself xdist would begin with the files of the most tests."""
    if config.getoption("dist") != "loadfile":
        return None
    config.option.loadscopereorder = False
    return GroupScheduling(config, log)


@pytest.hookimpl(wrapper=True)
def pytest_collection() -> Iterator[Any]:
    """Import and collect tests without garbage collections, which find nothing, since all of it stays.

    They take a third of the time. Afterwards they come seldom: with the interpreter's threshold, 700 objects, they and
    hypothesis's clock of them take a fifteenth of the time of the pure tests.
    """
    gc.disable()
    try:
        return (yield)
    finally:
        gc.freeze()
        gc.set_threshold(SELDOM)
        gc.enable()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Stable: within a folder the order stays."""
    items.sort(key=lambda item: _place(item.path))


@functools.cache
def _place(path: Path) -> int:
    found = (number for number, name in enumerate(LONG_FIRST) if path.match(name) or name in path.parts)
    return next(found, len(LONG_FIRST))


def group_of(path: Path) -> str:
    """The first file of the group of this one; the file itself if it is in none."""
    return next((files[0] for files in IN_ONE_PROCESS if any(map(path.match, files))), path.as_posix())


@pytest.hookimpl(trylast=True)
def pytest_runtest_teardown(item: pytest.Item, nextitem: pytest.Item | None) -> None:
    """What lasts takes processor time from all other tests, so it ends with the last test of its files."""
    if LASTING in item.config.stash and (nextitem is None or group_of(nextitem.path) != group_of(item.path)):
        item.config.stash[LASTING].close()


@pytest.fixture(scope="session")
def lasting(request: pytest.FixtureRequest) -> Lasting:
    return request.config.stash.setdefault(LASTING, Lasting())


@pytest.fixture
async def connections_end() -> AsyncIterator[None]:
    """Before the event loop is closed, let it close what the other ends of connections have closed.

    It gets a few turns after a test, which are not always enough: the garbage of a connection would fail a later test,
    which has nothing to do with it. So one that neither side has closed by then is aborted.
    """
    yield
    await end_connections(patient_turns=LAST_TURNS // 2)


@pytest.fixture(autouse=True)
def _connections_end(request: pytest.FixtureRequest) -> None:
    """Every test on an event loop."""
    if inspect.iscoroutinefunction(getattr(request, "function", None)):
        request.getfixturevalue("connections_end")


@pytest.fixture(scope="session", autouse=True)
def _patient_clients() -> Iterator[None]:
    """A test that gives its client of httpx no timeout does not depend on the five seconds that httpx has for it."""
    usual = inspect.signature(httpx.Client).parameters["timeout"].default
    with pytest.MonkeyPatch.context() as patch:
        for name in ("connect", "read", "write", "pool"):
            patch.setattr(usual, name, PATIENCE_SECONDS)
        yield


@pytest.fixture(scope="session", autouse=True)
def _authorities_read_once() -> Iterator[None]:
    """Each client of httpx that is made reads the certificates of all authorities, though no test speaks TLS."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(ssl, "create_default_context", functools.cache(ssl.create_default_context))
        yield


@pytest.fixture(scope="session", autouse=True)
def _entry_points_read_once() -> Iterator[None]:
    """Each application looks for plug-ins in all distributions that are installed.

    A test that adds one adds a directory to `sys.path`.
    """
    look = functools.cache(lambda group, _path: entry_points(group=group))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plugins, "entry_points", lambda *, group: look(group, tuple(sys.path)))
        yield


class SharedDialect(SQLiteDialect_pysqlite):
    """SQLite's dialect; all engines on it have one object, which the keys of compiled statements hold."""

    supports_statement_cache = True
    _shared: ClassVar[Self | None] = None

    def __new__(cls, **_options: Any) -> Self:
        return cls._shared or super().__new__(cls)

    def __init__(self, **options: Any) -> None:
        if self._shared is None:
            super().__init__(**options)
            SharedDialect._shared = self


@pytest.fixture(scope="session", autouse=True)
def _statements_compiled_once() -> Iterator[None]:
    """Each store has an engine of its own, which compiles each statement: a third of the time of a test of the API."""
    registry.register("sqlite.shared", __name__, SharedDialect.__name__)
    compiled: dict[Any, Any] = {}

    def create_sharing(url: URL, **options: Any) -> Engine:
        if url.drivername != "sqlite":
            return create_engine(url, **options)
        options["execution_options"] = {"compiled_cache": compiled}
        engine = create_engine(url.set(drivername="sqlite+shared"), **options)
        engine.url = url
        return engine

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(dialects, "create_engine", create_sharing)
        yield


@pytest.fixture(scope="session")
def migrated(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An empty database with all tables: each test gets a copy, which is quicker than to migrate."""
    file = tmp_path_factory.mktemp("migrated") / "ipnext.db"
    store = Store.open(f"sqlite:///{file}")
    store.migrate()
    store.close()
    return file


@pytest.fixture(scope="session")
def plain_vllm(subprocesses):
    """The interpreter that has vLLM, as users have it: a test of engines on it takes thrice the processor time."""
    try:
        python = vllm_python(os.environ)
    except LoadFailed:
        pytest.skip(NEEDS_VLLM)
    look = [python, "-c", "import importlib.util as u, sys; sys.exit(u.find_spec('vllm') is None)"]
    if subprocess.run(look, check=False).returncode:
        pytest.skip(NEEDS_VLLM)
    return python


@pytest.fixture(scope="session")
def vllm(plain_vllm, tmp_path_factory):
    """An interpreter that has vLLM, whose engines fork."""
    return forking_vllm(plain_vllm, tmp_path_factory.mktemp("forking"))


@pytest.fixture(scope="session")
def vllm_cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory that engines share as VLLM_CACHE_ROOT.

    Without it each imports its model once more in a process that inspects it.
    """
    return tmp_path_factory.mktemp("vllm-cache")
