"""Whether an adapter fits its base model: kinds, task, rank, and the shape of each module. Headers only."""

import re
from collections.abc import Iterator, Mapping
from typing import Final

from ipnext.artifacts.checkpoints.adapter_fit import Matrix, highest_rank, matrices
from ipnext.artifacts.checkpoints.checkpoint_fit import LLAMA_FAMILY, Shape, llama_shapes
from ipnext.artifacts.checkpoints.reader import AdapterConfig, ReadCheckpoint, layer_numbers
from ipnext.model.registry.checkpoint import ADAPTER_CONFIG_FILE, CONFIG_FILE

_WRITES_TEXT: Final = "CAUSAL_LM"
_HUB_NAME: Final = re.compile(r"[\w.-]+/[\w.-]+")
"""OWNER/NAME; any other value of a configuration is a path on the machine that trained it."""


def base_misfits(adapter: ReadCheckpoint, base: ReadCheckpoint, *, max_rank: int) -> Iterator[str]:
    """Yield each reason why an adapter can't be loaded into an engine of the base that has room for `max_rank`."""
    if adapter.facts.kind != "adapter":
        yield f"the snapshot is a model ({adapter.facts.architecture}), not an adapter; it has no {ADAPTER_CONFIG_FILE}"
        return
    config = adapter.adapter or AdapterConfig()
    rank = highest_rank(config)
    if rank > max_rank:
        yield f"{ADAPTER_CONFIG_FILE}: rank {rank} is more than maxLoraRank of its base; allowed: up to {max_rank}"
    if config.task_type is not None and (config.task_type == _WRITES_TEXT) == base.facts.embeds:
        told = "embeds" if base.facts.embeds else "writes text"
        yield (
            f"{ADAPTER_CONFIG_FILE}: task_type {config.task_type!r} is for another architecture; "
            f"{base.facts.architecture} {told}"
        )
    yield from _layers(adapter, base)
    shapes = _shapes(base)
    for name, matrix in matrices(adapter).items():
        yield from _module_faults(name, matrix, base, shapes, swapped=config.fan_in_fan_out)


def other_base(adapter: ReadCheckpoint, base_name: str | None) -> str | None:
    """Return why an adapter was trained on another model, if both name theirs as OWNER/NAME.

    None if they do not, or agree.
    """
    told = adapter.facts.base or ""
    if base_name is None or not (_HUB_NAME.fullmatch(told) and _HUB_NAME.fullmatch(base_name)):
        return None
    if told.lower() == base_name.lower():
        return None
    return (
        f"{ADAPTER_CONFIG_FILE}: base_model_name_or_path {told!r} is another model; "
        f"{CONFIG_FILE} of the base says {base_name!r}"
    )


def _layers(adapter: ReadCheckpoint, base: ReadCheckpoint) -> Iterator[str]:
    told = base.config.num_hidden_layers
    beyond = sorted(number for number in set(layer_numbers(adapter.tensors)) if told is not None and number >= told)
    if beyond:
        yield f"the adapter changes layer {beyond[0]}; the base has {told} layers"


def _shapes(base: ReadCheckpoint) -> Mapping[str, Shape]:
    """Map each module to the (outputs, inputs) of its matrix.

    They are read from the headers, and for the Llama family from `config.json`.
    """
    told = llama_shapes(base.config) if base.facts.architecture in LLAMA_FAMILY else {}
    packed = base.config.quantization_config is not None
    found = {} if packed else {name: place.shape for name, place in base.tensors.items()}
    shapes = {
        name.removesuffix(".weight"): shape for name, shape in {**told, **found}.items() if name.endswith(".weight")
    }
    if "lm_head" not in shapes and "model.embed_tokens" in shapes:
        shapes["lm_head"] = shapes["model.embed_tokens"]  # one tensor for both
    return shapes


def _module_faults(
    name: str, matrix: Matrix, base: ReadCheckpoint, shapes: Mapping[str, Shape], *, swapped: bool
) -> Iterator[str]:
    shape = shapes.get(matrix.module)
    if shape is None:
        if base.facts.architecture in LLAMA_FAMILY:
            yield f"tensor {name!r} changes {matrix.module}, which the base ({base.facts.architecture}) does not have"
        return
    if len(shape) != 2:  # LoRA applies only to matrices
        yield f"tensor {name!r} changes {matrix.module}, which is no matrix in the base but has shape {list(shape)}"
        return
    outputs, inputs = shape[::-1] if swapped or matrix.embedding else shape
    side, wanted = (1, inputs) if matrix.side == "A" else (0, outputs)
    if len(matrix.shape) == 2 and matrix.shape[side] != wanted:
        what = "inputs" if matrix.side == "A" else "outputs"
        yield f"tensor {name!r} has shape {list(matrix.shape)}; {matrix.module} of the base has {wanted} {what}"
