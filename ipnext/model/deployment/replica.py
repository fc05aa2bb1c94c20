"""Replicas as observed: one process each."""

from collections.abc import Mapping
from enum import StrEnum

from pydantic import Field

from ipnext.model.deployment.deployment import DeploymentKey
from ipnext.model.deployment.engine_start import EngineStart
from ipnext.model.deployment.engine_swap import EngineSwap
from ipnext.model.value import Name, Value


class ReplicaPhase(StrEnum):
    """Where a replica's process stands."""

    STARTING = "starting"
    RUNNING = "running"
    DRAINING = "draining"
    FAILED = "failed"


class LoadFailure(Value):
    """A snapshot that a replica could not load. `code` is an error code of `ipnext.errors`."""

    snapshot: int
    generations: tuple[int, ...]
    code: str
    message: str
    adapter: Name | None = None
    """The part that it is of, if that is an adapter on the replica's own."""


class Replica(Value):
    """One process as observed.

    It takes traffic for the generations in `ready` only: it has all of them that it holds.
    """

    id: str
    key: DeploymentKey
    phase: ReplicaPhase
    url: str | None = None
    pid: int | None = None
    ready: tuple[int, ...] = ()
    engines: Mapping[int, str] = Field(default_factory=dict)
    """Generation -> where an engine that serves by itself answers for it."""
    failures: tuple[LoadFailure, ...] = ()
    restarts: int = 0
    message: str | None = None
    coming: tuple[int, ...] = ()
    """Generations that it goes over to, in the place of those that it has, and is not ready for yet."""
    swaps: tuple[EngineSwap, ...] = ()
    """How its engines last went over."""
    starts: tuple[EngineStart, ...] = ()
    """How far its engines are that do not answer yet."""
    log: str | None = None
    """The file with its output, on the machine of the region's agent; logs of its engines lie beside it."""

    @property
    def going_over(self) -> str:
        """The swap's target, for people; empty without a swap."""
        return f"goes over to generation {', '.join(map(str, self.coming))}" if self.coming else ""

    @property
    def doing(self) -> str:
        """The replica's activity, for people; empty if it has no swap and all its engines answer."""
        going = [self.going_over] if self.going_over else []
        return "; ".join([*going, *(start.text for start in self.starts)])

    @property
    def note(self) -> str:
        """The replica's failures, message, activity and swaps, for people."""
        failures = [failure.message for failure in self.failures]
        told = [self.message] if self.message and not failures else []
        doing = [self.doing] if self.doing else []
        return "; ".join([*failures, *told, *doing, *(swap.text for swap in self.swaps)])
