"""The memory of snapshots in a host: known from their manifests before any is loaded. Pure.

Used by the host that loads, and by the transition that decides whether two snapshots fit beside each other.
"""

from collections.abc import Iterable
from typing import Final

from ipnext.model.deployment.deployment import SERVING_ENGINES
from ipnext.model.registry.checking import GOLDEN_FILE
from ipnext.model.registry.optimization import REPLAY_FILE, REPORT_FILE
from ipnext.model.registry.registry import SnapshotManifest

WEIGHTS_SUFFIX: Final = ".safetensors"
_NOT_LOADED: Final = frozenset({REPLAY_FILE, REPORT_FILE, GOLDEN_FILE})
"""Files for people, for steps of a pipeline and for checks."""
PROCESS_BYTES: Final = 400 * 10**6
"""A host with its engine and no snapshot, measured: 337 MB with torch 2.13."""
PROGRAM_FACTOR: Final = 64
"""Memory of a program relative to its file, measured: 36 to 47 for a file of 0.77 MB (600 modules)."""
ALLOWANCE_BYTES: Final = 32 * 2**20
"""Memory of a first load regardless of its size, measured 26 to 34 MB: the engine's modules, and the trial requests."""
ENGINE_BYTES: Final = 2_100 * 10**6
"""All processes of one vLLM on a CPU without its weights and its keys and values, measured at its start: 2,030 MB
with vLLM 0.32."""


def needed_bytes(manifest: SnapshotManifest) -> int:
    """Return the expected memory of a load: the size of the weights on disk, the rest by the measured constants."""
    weights = weight_bytes(manifest)
    loaded = (file for file in manifest.files if file.path not in _NOT_LOADED)
    if manifest.engine in SERVING_ENGINES:
        return weights + ENGINE_BYTES
    rest = sum(file.size_bytes for file in loaded) - weights
    return weights + PROGRAM_FACTOR * rest + ALLOWANCE_BYTES


def weight_bytes(manifest: SnapshotManifest) -> int:
    """Return the size of the weights on disk."""
    loaded = (file for file in manifest.files if file.path not in _NOT_LOADED)
    return sum(file.size_bytes for file in loaded if file.path.endswith(WEIGHTS_SUFFIX))


def fits(memory_bytes: int | None, manifests: Iterable[SnapshotManifest]) -> bool:
    """Return whether one host has room for these snapshots at the same time; without a limit it has."""
    if memory_bytes is None:
        return True
    return PROCESS_BYTES + sum(needed_bytes(manifest) for manifest in manifests) <= memory_bytes
