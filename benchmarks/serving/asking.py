"""What peers and we are asked with, and the host of ours that stands beside each peer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving.own_rows import WHOLE
from benchmarks.serving.own_servers import OwnServers
from benchmarks.serving.reference import Reference
from benchmarks.serving.server_process import ServerProcess

OURS = "IPnext host"


@dataclass(frozen=True)
class Asking:
    """`seconds` for each way at each batch size; `clients` at once where throughput is measured."""

    reference: Reference
    folder: Path
    peers_folder: Path
    batches: Sequence[int]
    seconds: float
    clients: int


def our_host(own: OwnServers, asking: Asking) -> ServerProcess:
    """A host with the whole model. What waits is answered together, as it is by default."""
    asking.reference.export(asking.folder / WHOLE)
    return own.host("host", {WHOLE: asking.folder / WHOLE}).server
