"""Between which snapshots a running engine can go over: weights of one form, and the same of all that it reads once, as it starts. Pure."""

from typing import Any, Final

from ipnext.model.checkpoint import CONFIG_FILE
from ipnext.model.registry import SnapshotManifest

CONFIGS: Final = frozenset({CONFIG_FILE, "generation_config.json"})
"""Files that also tell who saved them; whether they say the same of the model takes a look into them."""
_OF_WHOEVER_SAVED_IT: Final = frozenset({"_name_or_path", "transformers_version"})
_WEIGHTS: Final = (".safetensors", ".safetensors.index.json")


def obstacle(former: SnapshotManifest, new: SnapshotManifest) -> str | None:
    """What keeps an engine from going over, as far as the manifests tell; None where they tell nothing."""
    one, other = former.checkpoint, new.checkpoint
    if one is None or other is None or (one.architecture, one.tensors) != (other.architecture, other.tensors):
        return "its tensors get other names, dtypes or shapes"
    changed = sorted(changed_beside_weights(former, new) - CONFIGS)
    return read_once(changed[0]) if changed else None


def changed_beside_weights(former: SnapshotManifest, new: SnapshotManifest) -> frozenset[str]:
    """Files, other than those of the weights, that only one of them has, or that differ."""
    both = [
        {file.path: file.sha256 for file in each.files if not file.path.endswith(_WEIGHTS)} for each in (former, new)
    ]
    return frozenset(path for path, _ in both[0].items() ^ both[1].items())


def read_once(path: str) -> str:
    """Why another file of this name is an obstacle."""
    return f"an engine reads {path} as it starts and never again, and it is another one"


def same_model(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Whether two of CONFIGS say the same of the model."""
    kept = ({key: value for key, value in each.items() if key not in _OF_WHOEVER_SAVED_IT} for each in (one, other))
    return next(kept) == next(kept)
