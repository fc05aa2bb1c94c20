"""What a node does in its own way, and what its parts share about one pod."""

import contextlib
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import httpx2

from tests.kubernetes.kubelet.api import Gone, NodeApi
from tests.kubernetes.kubelet.environment import fields_of
from tests.kubernetes.server.errors import Json

Images = Mapping[str, Sequence[str]] | Collection[str] | None
"""Images that can be pulled, as a mapping with the words of their entry points; None: all."""


@dataclass(frozen=True)
class Settings:
    """What a node does in its own way."""

    directory: Path
    images: Images = None
    pace: float = 1.0
    """Factor of the pauses between probes and between restarts."""
    refresh_seconds: float = 60.0
    """Pause between two looks at objects that volumes show."""
    token_seconds: float | None = None
    """After so many seconds a token is renewed; None: after the usual part of its life."""
    is_isolated: bool = True
    """Whether containers have namespaces of their own."""
    has_memory_groups: bool = True
    """Whether memory limits are kept by groups of the kernel."""


@dataclass
class PodContext:
    """One pod on its node, as its containers see it."""

    api: NodeApi
    node: str
    pod: Json
    address: str
    settings: Settings
    directory: Path
    tell: Callable[[], None]
    """Says that the status has changed."""
    _warned: set[tuple[str, str]] = field(default_factory=set)

    @property
    def namespace(self) -> str:
        """Namespace of the pod."""
        found: str = self.pod["metadata"]["namespace"]
        return found

    @property
    def name(self) -> str:
        """Name of the pod."""
        found: str = self.pod["metadata"]["name"]
        return found

    @property
    def volumes(self) -> Path:
        """Directory of the volumes."""
        return self.directory / "v"

    @property
    def fields(self) -> dict[str, str]:
        """What references to fields may name."""
        return fields_of(self.pod, self.address, self.node)

    @property
    def grace_seconds(self) -> float:
        """How long the pod may take to end by itself."""
        return float(self.pod["spec"].get("terminationGracePeriodSeconds", 30))

    async def warn(self, reason: str, message: str) -> None:
        """Create an event about the pod, once for each message."""
        if (reason, message) not in self._warned:
            self._warned.add((reason, message))
            with contextlib.suppress(Gone, httpx2.HTTPError):
                await self.api.warn(self.pod, reason, message, self.node)
