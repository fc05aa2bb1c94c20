"""A snapshot on disk with its ancestors: a full one needs none, a delta needs its parents."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ipnext.errors import InvalidInput
from ipnext.model.registry.registry import SnapshotManifest
from serving.engines.torch.engine import ENGINE
from serving.engines.torch.program import PROGRAM_FILE, WEIGHTS_FILE, read_document
from serving.snapshots.directory import verify_manifest
from serving.weights.delta_snapshot import Delta, read_delta
from serving.weights.weights import Weights, read_weights


@dataclass(frozen=True, slots=True, eq=False)
class OpenSnapshot:
    """A snapshot with its weights in memory."""

    manifest: SnapshotManifest
    program: Path
    """The program file of the full snapshot at the root."""
    places: Mapping[str, Any]
    """Name of a tensor in the program -> its name in the weights."""
    weights: Weights
    delta: Delta | None = None


def open_snapshot(directory: Path, bases: Sequence[Path] = ()) -> OpenSnapshot:
    """Open a snapshot; the parents of a delta are searched in `bases`. All files are checked.

    InvalidInput if one is not a snapshot of the torch engine or a parent is not among `bases`; ArtifactError;
    LoadFailed.
    """
    manifest = _torch_manifest(directory)
    if not manifest.is_delta:
        places = read_document(directory / PROGRAM_FILE)["tensors"]
        weights = read_weights(directory / WEIGHTS_FILE, (place["key"] for place in places.values()))
        return OpenSnapshot(manifest, directory / PROGRAM_FILE, places, weights)
    rest = {base: _torch_manifest(base) for base in bases if base.resolve() != directory.resolve()}
    found = next((base for base, other in rest.items() if other.digest == manifest.parent), None)
    if found is None:
        msg = f"base: {str(directory)!r} is a delta of snapshot {manifest.parent}; name the directory of that one too"
        raise InvalidInput(msg, field="base", value=[str(base) for base in bases])
    return apply_to_parent(open_snapshot(found, tuple(rest)), directory, manifest)


def apply_to_parent(parent: OpenSnapshot, directory: Path, manifest: SnapshotManifest) -> OpenSnapshot:
    """Apply the delta in `directory` to the parent. InvalidInput if it is a delta of another snapshot."""
    if not manifest.is_delta or manifest.parent != parent.manifest.digest:
        what = f"a delta of {manifest.parent}" if manifest.is_delta else "a full snapshot"
        msg = f"directory: {str(directory)!r} is {what}, not a delta of {parent.manifest.digest}"
        raise InvalidInput(msg, field="directory", value=str(directory))
    delta = read_delta(directory)
    return OpenSnapshot(manifest, parent.program, parent.places, parent.weights.changed_by(delta), delta)


def _torch_manifest(directory: Path) -> SnapshotManifest:
    manifest = verify_manifest(directory)
    if manifest.engine != ENGINE:
        msg = f"directory: {str(directory)!r} is for engine {manifest.engine!r}; deltas are made for engine {ENGINE!r}"
        raise InvalidInput(msg, field="directory", value=manifest.engine, allowed=(ENGINE,))
    return manifest


def tensor_of(name: str, places: Mapping[str, Any]) -> str | None:
    """Return the key of a parameter or buffer in the weights; None if the program does not use it."""
    for kind in ("state", "constant"):
        if f"{kind}:{name}" in places:
            return str(places[f"{kind}:{name}"]["key"])
    return None


def parameter_names(places: Mapping[str, Any]) -> list[str]:
    """Return the names of all parameters and buffers that the program uses."""
    return sorted(name.partition(":")[2] for name in places)
