"""What peers and we are asked with, and the host of ours that stands beside each peer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from benchmarks.serving.reference import Asked, Reference
from benchmarks.serving.rows.own import WHOLE, edges
from benchmarks.serving.servers.own import Holding, OwnServers
from ipnext.model.registry.registry import SNAPSHOT_FILE, SnapshotManifest

OURS = "IPnext host"


@dataclass(frozen=True)
class Asking:
    """`seconds` for each way at each batch size; `clients` at once if throughput is measured."""

    reference: Reference
    folder: Path
    peers_folder: Path
    batches: Sequence[int]
    seconds: float
    clients: int


def our_host(own: OwnServers, asking: Asking) -> Holding:
    """Start a host with the whole model. Waiting requests are answered together, which is the default."""
    asking.reference.export(asking.folder / WHOLE)
    return own.host("host", {WHOLE: asking.folder / WHOLE})


def own_ways(own: OwnServers, host: Holding, asking: Asking) -> list[Asked]:
    """Return that host, a router before it, and Envoy before both."""
    manifest = SnapshotManifest.model_validate_json((asking.folder / WHOLE / SNAPSHOT_FILE).read_bytes())
    return edges(own, host, manifest)
