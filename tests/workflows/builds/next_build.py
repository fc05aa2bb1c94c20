"""The build after this one, as a virtual environment of its own.

Every channel between components has a field more, the schema a revision. `make_next_build` makes the environment. Each
of its processes imports this file first and changes the modules of the platform as they are imported (`CHANGES`). A
process that writes an unknown field to a channel leaves a file of the channel's name (`used`).

What is named by its digest (snapshots and their manifests) has no field more: it would be another thing.
"""

import functools
import importlib.util
import json
import shutil
import sys
import sysconfig
from collections.abc import Callable, Mapping
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

ADDED = "added_by_the_next_build"
HEADER = ADDED.replace("_", "-")
REVISION = "9001"
PAYLOAD, DOCUMENT, SCHEMA = "Temporal payload", "document in the database", "table of the database"
API_ANSWER, EVENT_STREAM = "answer of the API", "stream of events of the API"
AGENT_REQUEST, AGENT_ANSWER = "request to an agent", "answer of an agent"
TO_SUPERVISOR, TO_AGENT = "message to a supervisor", "message to an agent"
NOTE, IDENTITY, FORKS = "note of a process", "identity of a supervisor", "message of a fork server"
STATE, PORTS, TABLE = "desired state of a region", "ports of a region", "table of a router"
HOST_REQUEST, HOST_ANSWER, ROUTER_ANSWER = "control request to a host", "state of a host", "state of a router"
TO_HOST, TO_ROUTER = "frame to a host", "frame to a router"
TO_GATEWAY = "request to the gateway of another region"
CHANNELS = frozenset(
    {
        *(PAYLOAD, DOCUMENT, SCHEMA, API_ANSWER, EVENT_STREAM, AGENT_REQUEST, AGENT_ANSWER, TO_SUPERVISOR, TO_AGENT),
        *(NOTE, IDENTITY, FORKS, STATE, PORTS, TABLE, HOST_REQUEST, HOST_ANSWER, ROUTER_ANSWER, TO_HOST, TO_ROUTER),
        *(TO_GATEWAY,),
    }
)
"""Everything that components of two builds tell each other, or leave for each other."""

WITHOUT_FIELD = frozenset(
    {
        "ipnext.model.value",
        *(f"ipnext.model.registry.{name}" for name in ("registry", "delta", "signing", "checkpoint", "adapter")),
    }
)
FIXED = frozenset({"FigureRow", "DeploymentKey"})
"""Rows of plans are made by position within one process, and a key with a field more names another thing."""

MIGRATION = """
import sqlalchemy as sa
from alembic import op

revision, down_revision, branch_labels, depends_on = "{revision}", "{head}", None, None

def upgrade():
    for table in ("models", "changes", "generations", "deployments", "transitions"):
        op.add_column(table, sa.Column("{added}", sa.String(), nullable=True))

def downgrade():
    pass
"""


def make_next_build(directory: Path, root: Path, head: str) -> Path:
    """Make the environment; returns its interpreter.

    `root` has the source tree, `head` is the newest revision of this build's schema.
    """
    python = directory / "bin" / "python"
    python.parent.mkdir(parents=True)
    for program in Path(sys.prefix, "bin").iterdir():
        if not program.name.startswith("python"):
            (python.parent / program.name).symlink_to(program)
    base = Path(sys._base_executable).resolve()
    python.symlink_to(base)
    (directory / "pyvenv.cfg").write_text(f"home = {base.parent}\ninclude-system-site-packages = false\n")
    site = Path(sysconfig.get_path("purelib", vars={"base": str(directory), "platbase": str(directory)}))
    site.mkdir(parents=True)
    shutil.copy(__file__, site / "next_build.py")
    packages = [path for path in sys.path if path.endswith("site-packages")]
    start = "import next_build; next_build.install()"
    (site / "next.pth").write_text("\n".join([str(root), *packages, start, ""]))
    (directory / "channels").mkdir()
    shutil.copytree(root / "ipnext" / "store" / "migrations", directory / "migrations")
    migration = MIGRATION.format(revision=REVISION, head=head, added=ADDED)
    (directory / "migrations" / "versions" / f"{REVISION}_next.py").write_text(migration)
    return python


def used(python: Path) -> frozenset[str]:
    """The channels that processes of the next build have written an unknown field to."""
    return frozenset(file.name for file in (python.parents[1] / "channels").iterdir())


# from here on in processes of the next build


@functools.cache
def use(channel: str) -> None:
    """Leave word that an unknown field has been written to a channel."""
    (Path(sys.prefix) / "channels" / channel).touch()


def install() -> None:
    """Change each module as it is imported: once, though Python may read the file that calls this twice."""
    if any(isinstance(finder, _Changing) for finder in sys.meta_path):
        return
    sys.meta_path.insert(0, _Changing())
    for module, shapes in SHAPES_OF_PROGRAMS.items():
        if f"{module}" in sys.orig_argv:
            json.dumps = functools.partial(_dumped, json.dumps, shapes)  # type: ignore[assignment]


class _Changing(MetaPathFinder):
    """Finds the modules to change as all others would, and changes them after they were executed."""

    def __init__(self) -> None:
        self._sought: set[str] = set()

    def find_spec(self, name: str, path: object = None, target: object = None) -> ModuleSpec | None:  # noqa: ARG002 - the port's
        change = CHANGES.get(name)
        if change is None or name in self._sought:
            return None
        self._sought.add(name)
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.loader is not None
        execute = spec.loader.exec_module

        def changed(module: ModuleType) -> None:
            execute(module)
            change(module)

        spec.loader.exec_module = changed  # type: ignore[method-assign]
        return spec


def _extend_version(module: ModuleType) -> None:
    module.__version__ = "999"


def _extend_values(module: ModuleType) -> None:
    """Each class of values that is made has one field more."""
    metaclass = module.ModelMetaclass
    made = metaclass.__new__

    def extended(mcs: Any, name: str, bases: Any, namespace: dict[str, Any], *arguments: Any, **options: Any) -> Any:
        place = namespace.get("__module__", "")
        names = {base.__name__ for base in bases}
        fixed = name in FIXED or not FIXED.isdisjoint(names) or any(base.startswith("RootModel") for base in names)
        ours = place == "ipnext.infra.process.notes" or (
            place.startswith("ipnext.model.") and place not in WITHOUT_FIELD
        )
        if ours and not fixed:
            namespace["__annotations__"] = {**namespace.get("__annotations__", {}), ADDED: str}
            namespace[ADDED] = "new"
        return made(mcs, name, bases, namespace, *arguments, **options)

    metaclass.__new__ = extended


def _extend_schema(module: ModuleType) -> None:
    module.SCRIPTS = Path(sys.prefix) / "migrations"
    upgrade = module.upgrade

    def upgraded(engine: Any) -> None:
        upgrade(engine)
        use(SCHEMA)

    module.upgrade = upgraded


def _noting(channel: str, method: Callable[..., Any]) -> Callable[..., Any]:
    """Leave word of each answer that has the field."""

    def noted(*arguments: Any, **options: Any) -> Any:
        answer = method(*arguments, **options)
        told = getattr(answer, "body", None) or getattr(answer, "data", None) or answer
        if ADDED in (told if isinstance(told, str) else bytes(told).decode(errors="replace")):
            use(channel)
        return answer

    return noted


def _extend_payloads(module: ModuleType) -> None:
    kind = module.TolerantJson
    kind.to_payload = _noting(PAYLOAD, kind.to_payload)


def _extend_documents(module: ModuleType) -> None:
    module.document = _noting(DOCUMENT, module.document)


def _extend_stream(module: ModuleType) -> None:
    """Of the API: a field more in each event and in its message, then a message of a kind that no reader knows."""
    made = module._message

    def message(ordinal: int, event: Any) -> bytes:
        use(EVENT_STREAM)
        fields = made(ordinal, event).decode().removesuffix("\n\n").split("\n")
        told = [
            f"data: {json.dumps({**json.loads(f[6:]), ADDED: 'new'})}" if f.startswith("data: ") else f for f in fields
        ]
        return "\n".join([*told, f"{HEADER}: new", "", f"event: {ADDED}", "data: no JSON", "", ""]).encode()

    module._message = message


def _extend_gateway(module: ModuleType) -> None:
    """To those of other regions: a header more."""

    def with_header(found: Any) -> Any:
        if isinstance(found, list):
            return [with_header(one) for one in found]
        if not isinstance(found, dict):
            return found
        found = {name: with_header(value) for name, value in found.items()}
        added = found.get("request_headers_to_add", [])
        if any(one["header"]["key"] == module.FORWARDED_HEADER for one in added):
            use(TO_GATEWAY)
            found["request_headers_to_add"] = [*added, {"header": {"key": HEADER, "value": "new"}}]
        return found

    def extended(made: Any) -> Any:
        return lambda gateway, table: with_header(made(gateway, table))

    module.model_routes = extended(module.model_routes)


def _extend_frames(module: ModuleType) -> None:
    """A field more in headers and signatures, an element more in each array of theirs."""
    for name in ("bytes_frame", "tensor_frame"):
        setattr(module, name, _framed(getattr(module, name)))
    module.orjson = _LongerArrays(module.orjson)


class _LongerArrays:
    """orjson for headers of frames: the description of a tensor, and the sketch of an output, has an element more."""

    def __init__(self, plain: ModuleType) -> None:
        self._plain = plain
        self.loads = plain.loads

    def dumps(self, header: Mapping[str, Any]) -> bytes:
        told = dict(header)
        if "tensors" in told:
            told["tensors"] = [[*tensor, "new"] for tensor in told["tensors"]]
        if "sketches" in told:
            told["sketches"] = {name: [*sketch, "new"] for name, sketch in told["sketches"].items()}
        return self._plain.dumps(told)  # type: ignore[no-any-return]


def _framed(make: Callable[..., Any]) -> Callable[..., Any]:
    def made(header: Mapping[str, Any], *body: Any) -> Any:
        use(TO_HOST if "op" in header else TO_ROUTER)
        told = {"signature": header["signature"] | {ADDED: "new"}} if "signature" in header else {}
        return make({**header, **told, ADDED: "new"}, *body)

    return made


def _extend_messages(module: ModuleType) -> None:
    """Of agent and supervisor: each object of fixed keys."""
    send = module.MessageLink.send

    def sent(self: Any, message: Mapping[str, Any]) -> None:
        use(TO_SUPERVISOR if message["kind"] in {"hello", "start", "signal", "note", "end"} else TO_AGENT)
        if ADDED in (message.get("note") or {}):
            use(NOTE)
        send(self, _extended(message))

    module.MessageLink.send = sent


def _extended(message: Mapping[str, Any]) -> dict[str, Any]:
    """With a field more in the message and in what it holds, but for maps of names that have no fields."""
    changed: dict[str, Any] = {**message, ADDED: "new"}
    for name in ("owner", "fork", "restarts"):
        if isinstance(message.get(name), dict):
            changed[name] = _extended(message[name])
    if "processes" in message:
        changed["processes"] = [_extended(process) for process in message["processes"]]
    return changed


def _extend_error(module: ModuleType) -> None:
    body = module.error_body
    module.error_body = lambda error: json.dumps({**json.loads(body(error)), ADDED: "new"}).encode()


def _extend_ports(module: ModuleType) -> None:
    write = module.PortBook._write

    def written(self: Any) -> None:
        self._ports[ADDED] = 1
        use(PORTS)
        write(self)

    module.PortBook._write = written


def _extend_files(module: ModuleType) -> None:
    """Of desired state and of the router's table: their values have a field more by themselves."""
    replace = module.replace_file

    def replaced(path: Path, content: bytes, **options: Any) -> None:
        if ADDED.encode() in content:
            if path.name == "router.json":
                use(TABLE)
            elif path.parent.name in {"deployments", "routes"}:
                use(STATE)
        replace(path, content, **options)

    module.replace_file = replaced


def _extend_worker_calls(module: ModuleType) -> None:
    """Of a worker to agents: a header more; bodies have a field more by themselves."""
    kind = module.LocalProcessInfrastructure
    made = kind.__init__

    def extended(self: Any, *arguments: Any, **options: Any) -> None:
        made(self, *arguments, **options)
        clients = self._clients
        for client in (clients._plain, *(secure._now.http for secure in clients._secure.values())):
            client._http.headers[HEADER] = "new"
        use(AGENT_REQUEST)

    kind.__init__ = extended


def _extend_agent_answers(module: ModuleType) -> None:
    made = module.web.Response

    def extended(*arguments: Any, **options: Any) -> Any:
        if ADDED in (options.get("text") or ""):
            use(AGENT_ANSWER)
        options["headers"] = {**options.get("headers", {}), HEADER: "new"}
        return made(*arguments, **options)

    module.web.Response = extended


def _extend_control(module: ModuleType) -> None:
    """Of an agent to hosts and routers: a header more."""
    call = module.Control.call

    async def extended(self: Any, method: str, url: str, body: str | None = None, **options: Any) -> Any:
        if ADDED in (body or ""):
            use(HOST_REQUEST)
        return await call(self, method, url, body, **options)

    module.Control.call = extended


def _extend_control_answers(module: ModuleType) -> None:
    answer = module.json_response

    def extended(value: Any, status: int = 200) -> Any:
        response = answer(value, status)
        kind = type(value).__name__
        if kind in STATES and ADDED.encode() in response.body:
            use(STATES[kind])
        return module.Response(response.status, response.body, {**response.headers, HEADER: "new"})

    module.json_response = extended


def _dumped(dumps: Callable[..., str], shapes: Mapping[frozenset[str], str], value: Any, **options: Any) -> str:
    """For a program that writes JSON itself: a field more in objects of these keys."""
    channel = shapes.get(frozenset(value)) if isinstance(value, dict) else None
    if channel is None:
        return dumps(value, **options)
    use(channel)
    return dumps({**value, ADDED: "new"}, **options)


STATES = {"HostState": HOST_ANSWER, "RouterState": ROUTER_ANSWER}
CHANGES: Mapping[str, Callable[[ModuleType], None]] = {
    "ipnext": _extend_version,
    "ipnext.api.requests.stream": _extend_stream,
    "ipnext.infra.agent.http_api": _extend_agent_answers,
    "ipnext.infra.process.atomic_file": _extend_files,
    "ipnext.infra.control": _extend_control,
    "ipnext.infra.envoy.config": _extend_gateway,
    "ipnext.infra.error_body": _extend_error,
    "ipnext.infra.local_agents": _extend_worker_calls,
    "ipnext.infra.process.message_link": _extend_messages,
    "ipnext.infra.process.ports": _extend_ports,
    "ipnext.payloads": _extend_payloads,
    "ipnext.store.schema.migration": _extend_schema,
    "ipnext.store.unit_of_work": _extend_documents,
    "pydantic._internal._model_construction": _extend_values,
    "serving.protocol.frames": _extend_frames,
    "serving.http.messages": _extend_control_answers,
}
SHAPES_OF_PROGRAMS: Mapping[str, Mapping[frozenset[str], str]] = {
    "ipnext.infra.process.fork_server_process": {
        frozenset({"ready"}): FORKS,
        frozenset({"id", "pid"}): FORKS,
        frozenset({"id", "refused"}): FORKS,
    },
    "ipnext.infra.supervisor_process": {frozenset({"pid", "started_ticks"}): IDENTITY},
}
"""Of programs that run as `__main__`, which no import changes: keys of the objects that they write, and the channel."""
