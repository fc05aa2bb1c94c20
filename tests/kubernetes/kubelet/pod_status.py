"""The status of a pod, from those of its containers."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from enum import Enum

from tests.kubernetes.kubelet.times import time_text
from tests.kubernetes.server.errors import Json

WAITING: Json = {"waiting": {"reason": "ContainerCreating"}}


class Role(Enum):
    """What a container is in its pod."""

    INIT = "init"
    SIDECAR = "sidecar"
    MAIN = "main"


@dataclass
class ContainerState:
    """How one container is."""

    name: str
    image: str
    role: Role
    state: Json = field(default_factory=lambda: dict(WAITING))
    last: Json = field(default_factory=dict)
    is_started: bool = False
    is_ready: bool = False
    restarts: int = 0
    is_done: bool = False
    """Whether it has ended for good."""

    def document(self) -> Json:
        """Return its part of the status."""
        return {
            "name": self.name,
            "image": self.image,
            "imageID": "",
            "ready": self.is_ready,
            "started": self.is_started,
            "restartCount": self.restarts,
            "state": self.state,
            "lastState": self.last,
        }

    @property
    def exit_code(self) -> int | None:
        """Exit code of one that has ended."""
        found: int | None = self.state.get("terminated", {}).get("exitCode")
        return found

    @property
    def has_run(self) -> bool:
        """Whether it runs or ran at all."""
        return "waiting" not in self.state or "terminated" in self.last


def phase_of(states: Sequence[ContainerState], policy: str, *, is_ending: bool) -> str:
    """Return the phase of a pod."""
    inits = [each for each in states if each.role is Role.INIT]
    mains = [each for each in states if each.role is Role.MAIN]
    if any(each.is_done and each.exit_code != 0 for each in inits):
        return "Failed" if _has_ended(states) else "Pending"
    if not is_ending and not (_is_initialized(states) and all(each.has_run for each in mains)):
        return "Pending"
    if _has_ended(states) and (is_ending or all(each.is_done for each in mains)):
        return "Succeeded" if all(each.exit_code == 0 for each in mains) else "Failed"
    return "Running" if any(each.has_run for each in mains) or policy == "Always" else "Pending"


def _has_ended(states: Sequence[ContainerState]) -> bool:
    return not any("running" in each.state for each in states)


def _is_initialized(states: Sequence[ContainerState]) -> bool:
    inits = all(each.is_done and each.exit_code == 0 for each in states if each.role is Role.INIT)
    return inits and all(each.is_started or each.has_run for each in states if each.role is Role.SIDECAR)


class Conditions:
    """The conditions that a node writes, each with the time since which it has its status."""

    def __init__(self) -> None:
        self._known: dict[str, Json] = {}

    def of(self, pod: Json, states: Sequence[ContainerState], phase: str) -> list[Json]:
        """Return the conditions now; those of readiness gates are written by others."""
        needed = [each for each in states if each.role is not Role.INIT]
        unready = [each.name for each in needed if not each.is_ready]
        is_ready = not unready and phase == "Running"
        ended = "PodCompleted" if phase == "Succeeded" else "PodFailed" if phase == "Failed" else ""
        why = ended or "ContainersNotReady", f"containers with unready status: [{' '.join(unready)}]"
        closed = _closed_gates(pod)
        gates = "ReadinessGatesNotReady", f"the status of pod readiness gate {closed[:1]} is not True"
        initialized = _is_initialized(states)
        return [
            self._one("Initialized", initialized, ("ContainersNotInitialized", "")),
            self._one("ContainersReady", is_ready, why),
            self._one("Ready", is_ready and not closed, why if not is_ready else gates),
        ]

    def _one(self, kind: str, value: bool, why: tuple[str, str]) -> Json:
        known = self._known.get(kind)
        since = known["lastTransitionTime"] if known and known["status"] == str(value) else time_text()
        reason = {} if value else {"reason": why[0], "message": why[1]}
        self._known[kind] = {"type": kind, "status": str(value), "lastTransitionTime": since, **reason}
        return self._known[kind]


def _closed_gates(pod: Json) -> list[str]:
    """Return the readiness gates whose condition is not true."""
    true = {each["type"] for each in pod.get("status", {}).get("conditions") or () if each["status"] == "True"}
    gates = (each["conditionType"] for each in pod["spec"].get("readinessGates") or ())
    return [each for each in gates if each not in true]


def is_reported(status: Json, observed: Mapping[str, object]) -> bool:
    """Return whether the API has this status; it may have conditions of others beside it."""
    conditions = status["conditions"]
    listed = observed.get("conditions")
    known = {each["type"]: each for each in listed} if isinstance(listed, list) else {}
    if any(not _contains(known.get(each["type"], {}), each) for each in conditions):
        return False
    return all(_same(observed.get(name), each) for name, each in status.items() if name != "conditions")


def _contains(observed: Json, wanted: Json) -> bool:
    return all(observed.get(name) == each for name, each in wanted.items())


def _same(observed: object, wanted: object) -> bool:
    return observed == wanted or (not observed and not wanted)
