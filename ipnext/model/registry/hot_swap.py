"""Swaps of snapshots in a running engine.

Weights of one form, and equality of all files that it reads only at its start. Pure.
"""

from typing import Any, Final

from ipnext.model.registry.checkpoint import CONFIG_FILE
from ipnext.model.registry.registry import SnapshotManifest

CONFIGS: Final = frozenset({CONFIG_FILE, "generation_config.json"})
"""Files that also have data about the saving tool; only their content shows whether they describe the same model."""
_OF_WHOEVER_SAVED_IT: Final = frozenset({"_name_or_path", "transformers_version"})
_WEIGHTS: Final = (".safetensors", ".safetensors.index.json")


def obstacle(former: SnapshotManifest, new: SnapshotManifest) -> str | None:
    """Return the obstacle to a swap, as far as the manifests show it; None if they show none."""
    one, other = former.checkpoint, new.checkpoint
    if one is None or other is None or (one.architecture, one.tensors) != (other.architecture, other.tensors):
        return "its tensors get other names, dtypes or shapes"
    changed = sorted(changed_beside_weights(former, new) - CONFIGS)
    return read_once(changed[0]) if changed else None


def changed_beside_weights(former: SnapshotManifest, new: SnapshotManifest) -> frozenset[str]:
    """Return the files, other than weights, that only one of the snapshots has, or that differ."""
    both = [
        {file.path: file.sha256 for file in each.files if not file.path.endswith(_WEIGHTS)} for each in (former, new)
    ]
    return frozenset(path for path, _ in both[0].items() ^ both[1].items())


def read_once(path: str) -> str:
    """Return the reason why another file of this name is an obstacle."""
    return f"an engine reads {path} as it starts and never again, and it is another one"


def same_model(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Return whether two of CONFIGS describe the same model."""
    kept = ({key: value for key, value in each.items() if key not in _OF_WHOEVER_SAVED_IT} for each in (one, other))
    return next(kept) == next(kept)
