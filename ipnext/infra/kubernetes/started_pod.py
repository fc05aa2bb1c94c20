"""A pod that was created for a host: its end, and the reasons that the cluster gives for its state."""

import asyncio
import time
from collections.abc import Callable, Iterator
from signal import SIGKILL, Signals
from typing import Any, Final

from ipnext.infra.kubernetes.documents import HOST_CONTAINER, Json

ENDED_PHASES: Final = frozenset({"Succeeded", "Failed"})
_MESSAGE_LETTERS: Final = 500


class StartedPod:
    """`StartedProcess` of a pod. `kill` is called with the grace time that it has left; None: its own."""

    def __init__(self, name: str, end: Callable[["StartedPod", int | None], None], *, lost_seconds: float) -> None:
        self.name = name
        self.document: Json = {}
        """As last seen; empty until then."""
        self.last_output = ""
        self.reason = ""
        """Why it ended, for people."""
        self._end = end
        self._lost_seconds = lost_seconds
        self._grace_ends_at: float | None = None
        self._killed_by: Signals | None = None
        self._ended: asyncio.Future[int] = asyncio.get_running_loop().create_future()

    @property
    def pid(self) -> None:
        """None: it runs elsewhere."""

    @property
    def uid(self) -> str | None:
        """The identity of the object; None until it is known."""
        uid: str | None = self.document.get("metadata", {}).get("uid")
        return uid

    @property
    def address(self) -> str | None:
        """The pod's IP address; None while it has none."""
        status = self.document.get("status", {})
        return status.get("podIP") if status.get("phase") == "Running" else None

    @property
    def has_ended(self) -> bool:
        """Whether `wait` returns."""
        return self._ended.done()

    @property
    def is_final(self) -> bool:
        """Whether its containers have ended for good."""
        return self.document.get("status", {}).get("phase") in ENDED_PHASES

    @property
    def is_lost(self) -> bool:
        """Whether it is still there long after its deletion and its grace time."""
        return self._grace_ends_at is not None and time.monotonic() > self._grace_ends_at + self._lost_seconds

    async def wait(self) -> int:
        """Return its status once it has ended; below zero the signal that ended it."""
        return await asyncio.shield(self._ended)

    def signal(self, number: Signals) -> None:
        """Delete it: SIGKILL leaves it a second, any other signal its grace time."""
        if not self.has_ended:
            self._killed_by = number
            self._end(self, 1 if number == SIGKILL else None)

    def see(self, document: Json) -> None:
        """Take over its document."""
        self.document = document
        metadata = document["metadata"]
        if self._grace_ends_at is None and "deletionTimestamp" in metadata:
            self._grace_ends_at = time.monotonic() + metadata.get("deletionGracePeriodSeconds", 0)

    def finish(self, reason: str = "") -> None:
        """Let `wait` return: it has ended, is gone, or is given up."""
        if not self._ended.done():
            self.reason = reason or describe_end(self.document) or "its pod is gone"
            self._ended.set_result(self._status())

    def _status(self) -> int:
        found = _terminated(self.document)
        if found is not None:
            return int(found.get("exitCode", 0))
        return -(self._killed_by or SIGKILL).value


def describe_end(document: Json) -> str:
    """Return why a pod ended, by its status; empty if that does not say so."""
    status = document.get("status", {})
    found = _terminated(document)
    words = [f"{status[key]}" for key in ("reason", "message") if status.get(key)]
    if found is not None:
        code = f"status {found.get('exitCode')}"
        reason = found.get("reason", "")
        words.append(f"{reason} ({code})" if reason and reason not in {"Error", "Completed"} else f"ended with {code}")
    return ": ".join(words)[:_MESSAGE_LETTERS]


def describe_obstacle(document: Json) -> str | None:
    """Return why a pod does not run yet: its scheduling, or a container that can't start; None if nothing says so."""
    return next(_obstacles(document), None)


def _obstacles(document: Json) -> Iterator[str]:
    status = document.get("status", {})
    for condition in status.get("conditions", ()):
        if condition.get("type") == "PodScheduled" and condition.get("status") == "False":
            yield f"{condition.get('reason', 'Unschedulable')}: {condition.get('message', '')}"[:_MESSAGE_LETTERS]
    for container in (*status.get("initContainerStatuses", ()), *status.get("containerStatuses", ())):
        waiting = container.get("state", {}).get("waiting", {})
        if waiting.get("message"):
            text = f"{waiting.get('reason', 'waiting')} ({container['name']}): {waiting['message']}"
            yield text[:_MESSAGE_LETTERS]


def _terminated(document: Json) -> dict[str, Any] | None:
    statuses = document.get("status", {}).get("containerStatuses", ())
    host = next((each for each in statuses if each.get("name") == HOST_CONTAINER), None)
    return None if host is None else host.get("state", {}).get("terminated")
