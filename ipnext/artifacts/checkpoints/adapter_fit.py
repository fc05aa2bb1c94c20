"""Whether vLLM can load an adapter, and whether it has the form of its `adapter_config.json`.

Headers only, no weights.
"""

import re
from collections.abc import Iterator, Mapping
from typing import Any, Final, NamedTuple

from ipnext.artifacts.checkpoints.reader import AdapterConfig, ReadCheckpoint
from ipnext.model.registry.checkpoint import ADAPTER_CONFIG_FILE

_MATRIX: Final = re.compile(
    r"base_model\.model\.(?P<module>.+)\.lora_(?P<embedding>embedding_)?(?P<side>[AB])(?:\.weight)?"
)
"""PEFT's names of the two matrices of a module: the rank is the number of rows of A, and of columns of B."""

_PLAIN: Final[Mapping[str, Any]] = {
    "bias": "none",
    "modules_to_save": None,
    "use_dora": False,
    "lora_bias": False,
    "use_qalora": False,
    "use_bdlora": None,
    "alora_invocation_tokens": None,
    "layer_replication": None,
}
"""Settings of an adapter that is only two matrices for each module: vLLM 0.32 loads no other."""
_HARMLESS_INITS: Final = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})
"""Initial weights that leave the base unchanged. PiSSA, OLoRA and others change it: such an adapter belongs to
another base."""


class Matrix(NamedTuple):
    """One matrix of an adapter."""

    module: str
    """Its name in the base's checkpoint, without `.weight`."""
    side: str
    """A or B."""
    embedding: bool
    shape: tuple[int, ...]


def matrices(adapter: ReadCheckpoint) -> Mapping[str, Matrix]:
    """Map each tensor to its matrix; tensors of other names are left out."""
    found = ((name, _MATRIX.fullmatch(name), place.shape) for name, place in adapter.tensors.items())
    return {
        name: Matrix(match["module"], match["side"], bool(match["embedding"]), shape)
        for name, match, shape in found
        if match is not None
    }


def highest_rank(config: AdapterConfig) -> int:
    """Return the highest rank of any module; 0 if none is given."""
    return max([config.r or 0, *(config.rank_pattern or {}).values()])


def adapter_misfits(adapter: ReadCheckpoint) -> Iterator[str]:
    """Yield each fault of an adapter that does not depend on its base."""
    config = adapter.adapter or AdapterConfig()
    yield from _features(config)
    known = matrices(adapter)
    strange = sorted(adapter.tensors.keys() - known.keys())
    if strange or not known:
        what = f"tensor {strange[0]!r} is no matrix of LoRA" if strange else "it has no tensors"
        yield (
            f"{what}; an adapter has base_model.model.MODULE.lora_A.weight and lora_B.weight for each module "
            "that it changes"
        )
    sides = {(matrix.module, matrix.side) for matrix in known.values()}
    for name, matrix in known.items():
        yield from _rank_faults(name, matrix, config)
        other = "B" if matrix.side == "A" else "A"
        if (matrix.module, other) not in sides:
            yield f"tensor {name!r} stands alone: lora_{other} of {matrix.module} is missing"


def _features(config: AdapterConfig) -> Iterator[str]:
    if config.peft_type != "LORA":
        yield f"{ADAPTER_CONFIG_FILE}: peft_type {config.peft_type!r} is not served; allowed: LORA"
    for name, plain in _PLAIN.items():
        given = getattr(config, name)
        if given and given != plain:
            yield f"{ADAPTER_CONFIG_FILE}: {name} {given!r} is not served; allowed: {plain!r}"
    init = config.init_lora_weights
    if isinstance(init, str) and init.lower() not in _HARMLESS_INITS:
        allowed = ", ".join(sorted(_HARMLESS_INITS))
        yield (
            f"{ADAPTER_CONFIG_FILE}: init_lora_weights {init!r} belongs to a base with other weights; "
            f"allowed: true, {allowed}"
        )


def _rank_faults(name: str, matrix: Matrix, config: AdapterConfig) -> Iterator[str]:
    """Check that the smaller side of each matrix is the rank; skipped if a pattern gives several ranks."""
    side = 0 if matrix.side == "A" else 1
    if len(matrix.shape) != 2:  # a matrix has two
        yield f"tensor {name!r} has shape {list(matrix.shape)}; a matrix of LoRA has two dimensions"
    elif config.r and not config.rank_pattern and matrix.shape[side] != config.r:
        yield f"tensor {name!r} has shape {list(matrix.shape)}; {ADAPTER_CONFIG_FILE} says rank {config.r}"
