"""Notes that an agent stores with each process at the region's supervisor: enough for the next agent to adopt it."""

from collections.abc import Mapping
from typing import TypeVar

import structlog
from pydantic import Field, ValidationError

from ipnext.infra.process.spawn import Processes, StartedProcess
from ipnext.model.deployment.deployment import DeploymentKey
from ipnext.model.deployment.host_control import HostHolds
from ipnext.model.value import Value
from ipnext.model.wire import decode_plain


class HostNote(Value):
    """A host: its replica, its URL, and the holds that it was sent last."""

    key: DeploymentKey
    number: int
    engine: str
    url: str
    sent: HostHolds | None = None
    """Written before it is sent: the host may not have received it."""
    stamp: str = ""
    """Stamp of all holds that it is sent."""
    swapping: bool = False
    """Whether it is out of routing for a hot swap."""
    memory_bytes: int | None = None
    """Memory limit that its process was started with."""


class RouterNote(Value):
    """A router: its URL, and whether another one is replacing it."""

    router: int
    """Number of the router; unique among those that run."""
    url: str
    leaving: bool = False


class GatewayNote(Value):
    """Envoy.

    Its port, its admin socket, and the route table revisions in each version of its files that may be in force.
    """

    gateway_port: int
    admin_socket: str
    listeners: str = ""
    """Identifies the listeners: if they change, Envoy must restart to bind them."""
    revisions: Mapping[int, Mapping[str, int]] = Field(default_factory=dict)


N = TypeVar("N", HostNote, RouterNote, GatewayNote)


def find_notes(processes: Processes, kind: type[N]) -> dict[str, tuple[N, StartedProcess]]:
    """Return the processes of a kind that ran before this agent and still run, by name.

    An agent of another build may have written the notes: unknown fields are ignored. An unreadable note is logged; its
    process is not adopted.
    """
    notes: dict[str, tuple[N, StartedProcess]] = {}
    for name, note in processes.notes.items():
        running = processes.find_adopted(name)
        if note.get("kind") == kind.__name__ and running is not None:
            try:
                content = {field: value for field, value in note.items() if field != "kind"}
                notes[name] = decode_plain(kind, content), running
            except ValidationError as error:
                structlog.get_logger().error("process not adopted", process=name, reason=str(error))
    return notes


def as_note(note: HostNote | RouterNote | GatewayNote) -> dict[str, object]:
    """Return the JSON that `find_notes` reads."""
    return {"kind": type(note).__name__, **note.model_dump(mode="json")}
