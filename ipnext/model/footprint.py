"""The memory that snapshots take in a host: known from their manifests before any is loaded. Pure.

Used by the host that loads, and by the transition that decides whether two snapshots fit beside each other.
"""

from collections.abc import Iterable
from typing import Final

from ipnext.model.deployment import SERVING_ENGINES
from ipnext.model.registry import SnapshotManifest

WEIGHTS_SUFFIX: Final = ".safetensors"
PROCESS_BYTES: Final = 400 * 10**6
"""A host with its engine and no snapshot, measured: 337 MB with torch 2.13."""
PROGRAM_FACTOR: Final = 64
"""Memory of a program over its file, measured: 36 to 47 for a file of 0.77 MB (600 modules)."""
ALLOWANCE_BYTES: Final = 32 * 2**20
"""What a first load takes whatever its size, measured 26 to 34 MB: the engine's own modules, and the trial requests."""
ENGINE_BYTES: Final = 2_100 * 10**6
"""All processes of one vLLM on a CPU beside its weights and its room for keys and values, measured as it starts: 2,030 MB with vLLM 0.32."""


def needed_bytes(manifest: SnapshotManifest) -> int:
    """Memory that a load is expected to take: the weights as they lie on disk, the rest by what was measured."""
    weights = weight_bytes(manifest)
    if manifest.engine in SERVING_ENGINES:
        return weights + ENGINE_BYTES
    rest = sum(file.size_bytes for file in manifest.files) - weights
    return weights + PROGRAM_FACTOR * rest + ALLOWANCE_BYTES


def weight_bytes(manifest: SnapshotManifest) -> int:
    """Size of the weights as they lie on disk."""
    return sum(file.size_bytes for file in manifest.files if file.path.endswith(WEIGHTS_SUFFIX))


def fits(memory_bytes: int | None, manifests: Iterable[SnapshotManifest]) -> bool:
    """Whether one host holds these snapshots side by side; without a limit it does."""
    if memory_bytes is None:
        return True
    return PROCESS_BYTES + sum(needed_bytes(manifest) for manifest in manifests) <= memory_bytes
