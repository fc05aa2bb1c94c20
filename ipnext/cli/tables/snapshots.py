"""How one snapshot is shown."""

from collections.abc import Iterable

from rich.table import Table

from ipnext.cli.output import age
from ipnext.cli.tables.freshness import times_of
from ipnext.cli.tables.lineage import derivation_line
from ipnext.cli.tables.profiles import profile_tables
from ipnext.model.api.resources import SnapshotView
from ipnext.model.registry.profile import ProfileView


def snapshot_tables(snapshot: SnapshotView, profiles: Iterable[ProfileView]) -> Iterable[Table | str]:
    """Tabulate a snapshot, and the measured profiles of its replicas."""
    manifest = snapshot.manifest
    yield (
        f"{snapshot.model}/{snapshot.part}, snapshot {snapshot.number}: engine {manifest.engine}, "
        f"{age(snapshot.created_at)} old"
    )
    yield f"{len(manifest.files)} files, {manifest.size_bytes:,} bytes, SHA-256 {snapshot.digest}"
    yield snapshot.uri
    if snapshot.derived_from is not None:
        yield derivation_line(snapshot)
    elif snapshot.hardware:
        yield f"cut from a snapshot that was derived for hardware: {', '.join(snapshot.hardware)}"
    yield times_of(snapshot)
    found = tuple(profiles)
    yield from profile_tables(found) if found else (f"no profile; `ipnext profile {snapshot.model}` measures one",)
