"""A program compiled to a native library, run instead of the exported graph. `ipnext compile` writes it.

A compiled snapshot is its source with two further files: `library.so`, made by AOTInductor, and `compiled.json`, its
provenance and requirements. The weights stay in `weights.safetensors`: the library has none and gets them when it is
loaded. Loading it runs native code, so an engine does so only if the manifest's settings request it.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any, Final, Literal

import torch
from pydantic import Field, ValidationError
from safetensors import SafetensorError
from torch._C._aoti import AOTIModelContainerRunnerCpu

from ipnext.errors import LoadFailed
from ipnext.model.value import Sha256, Value
from ipnext.names import COMPILE_SETTING, LIBRARY_FILE
from serving.engines.torch.cpu_flags import machine_flags
from serving.engines.torch.program import PROGRAM_FILE, WEIGHTS_FILE, read_document
from serving.engines.torch.program_cache import lay_out
from serving.weights.delta_snapshot import Delta
from serving.weights.weights import Weights, read_weights

COMPILED_FILE: Final = "compiled.json"
CALLS_FILE: Final = "library.json"
"""Operators that the library calls by name, in torch's own form; written only if there are any."""

_OBJECTS_FILE: Final = "custom_objs_config.json"
"""File in which torch would look for a library's pickled objects."""
_AT_ONCE: Final = 4
"""Passes that one library runs concurrently; they share the weights."""


class LibraryDeviation(Value):
    """Deviation of the library's answers from the eager engine's, at one batch size.

    `relative`: to the largest figure.
    """

    batch: int = Field(ge=1)
    absolute: float = Field(ge=0)
    relative: float = Field(ge=0)


class CompiledDocument(Value):
    """`compiled.json`: a library's source and requirements, and the deviation of its answers."""

    format: Literal["ipnext/compiled/v1"] = "ipnext/compiled/v1"
    program: Sha256
    """Digest of the `program.json` that it was made from."""
    torch: str
    compiler: str
    level: str
    """The processors it was made for, as compilers call them: `x86-64-v3`, `x86-64-v4`, or `native`."""
    flags: tuple[str, ...]
    """Required features of the processor, by the kernel's names."""
    tolerance: float = Field(ge=0)
    differences: tuple[LibraryDeviation, ...] = ()


@dataclass(frozen=True, slots=True)
class CompiledProgram:
    """A library with its weights, which it reads in place: they live as long as this does."""

    runner: AOTIModelContainerRunnerCpu
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    arguments: tuple[torch.Tensor, ...]
    library: Path
    places: Mapping[str, Any]
    """Name of a tensor in the program -> its name in the weights, and its strides."""
    weights: Weights

    def run(self, tensors: Sequence[torch.Tensor]) -> Sequence[torch.Tensor]:
        """Run one forward pass over the user's inputs, in the order of `inputs`.

        RuntimeError if the library refuses.
        """
        return self.runner.run(tensors)  # type: ignore[arg-type]  # takes any sequence

    def changed_by(self, delta: Delta) -> "CompiledProgram":
        """Load the library again, with weights changed by a delta. LoadFailed."""
        return _bound(self.library, self.places, self.weights.changed_by(delta), self.inputs, self.outputs)


def close_together(tensor: torch.Tensor) -> torch.Tensor:
    """Return an input in the layout that a library reads: contiguous rows, whatever its strides were."""
    return tensor.contiguous()


def wants_compiled(settings: Mapping[str, Any]) -> bool:
    """Parse the engine setting `compile`: a boolean, or an object of compilation settings. LoadFailed otherwise."""
    given = settings.get(COMPILE_SETTING, False)
    if not isinstance(given, bool | Mapping):
        msg = f"settings.{COMPILE_SETTING}: must be true, false or an object such as {{tolerance: 1e-5}}, got {given!r}"
        raise LoadFailed(msg)
    return given is not False


def read_compiled(directory: Path, flags: frozenset[str] | None = None) -> CompiledProgram:
    """Load the library of a snapshot. LoadFailed if this machine (with CPU features `flags`) or its torch does not fit.

    No file is unpickled. Operators that the library calls by name must be ATen operations.
    """
    about = _read_about(directory / COMPILED_FILE)
    _check_fits(about, directory, machine_flags() if flags is None else flags)
    _check_calls(directory / CALLS_FILE)
    document = read_document(directory / PROGRAM_FILE)
    try:
        weights = read_weights(directory / WEIGHTS_FILE, (place["key"] for place in document["tensors"].values()))
    except (OSError, KeyError, SafetensorError) as error:
        msg = f"{WEIGHTS_FILE} cannot be read: {_first_line(error)}; compile the source snapshot again"
        raise LoadFailed(msg) from error
    library = (directory / LIBRARY_FILE).resolve()
    return _bound(library, document["tensors"], weights, tuple(document["inputs"]), tuple(document["outputs"]))


def _bound(
    library: Path, places: Mapping[str, Any], weights: Weights, inputs: tuple[str, ...], outputs: tuple[str, ...]
) -> CompiledProgram:
    try:
        runner = AOTIModelContainerRunnerCpu(str(library), _AT_ONCE)
        given = _hand_over(runner, lay_out(weights, places))
    except (OSError, RuntimeError, KeyError) as error:
        msg = f"{LIBRARY_FILE} cannot be loaded: {_first_line(error)}; compile the source snapshot again"
        raise LoadFailed(msg) from error
    return CompiledProgram(runner, inputs, outputs, given, library, places, weights)


def _read_about(path: Path) -> CompiledDocument:
    try:
        return CompiledDocument.model_validate_json(path.read_bytes())
    except (OSError, ValidationError) as error:
        msg = f"{path.name} cannot be read: {error}; compile the source snapshot again"
        raise LoadFailed(msg) from error


def _check_fits(about: CompiledDocument, directory: Path, flags: frozenset[str]) -> None:
    missing = [flag for flag in about.flags if flag not in flags]
    if missing:
        msg = (
            f"{LIBRARY_FILE} was compiled for processors with {', '.join(missing)}, which this machine lacks; "
            "compile it for a lower --cpu, or publish the source snapshot"
        )
        raise LoadFailed(msg)
    if about.torch != torch.__version__:
        msg = f"{LIBRARY_FILE} was compiled with torch {about.torch}, this is {torch.__version__}; compile it again"
        raise LoadFailed(msg)
    if sha256((directory / PROGRAM_FILE).read_bytes()).hexdigest() != about.program:
        msg = f"{LIBRARY_FILE} was compiled from another {PROGRAM_FILE}; compile the source snapshot again"
        raise LoadFailed(msg)


def _check_calls(path: Path) -> None:
    objects = path.with_name(_OBJECTS_FILE)
    if objects.exists():
        msg = f"{objects.name}: a snapshot may not bring objects for its library; compile the source snapshot again"
        raise LoadFailed(msg)
    if not path.exists():
        return
    try:
        targets = [node["node"]["target"] for node in json.loads(path.read_bytes())["nodes"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        msg = f"{path.name} cannot be read: {error}; compile the source snapshot again"
        raise LoadFailed(msg) from error
    for target in targets:
        if not isinstance(target, str) or not target.startswith("aten::"):
            msg = f"{path.name} calls {target!r}, which a snapshot may not; compile the source snapshot again"
            raise LoadFailed(msg)


def _hand_over(runner: AOTIModelContainerRunnerCpu, weights: dict[str, torch.Tensor]) -> tuple[torch.Tensor, ...]:
    """Pass the weights to the library, without a copy, and return those that it uses."""
    by_path = {place.partition(":")[2]: tensor for place, tensor in weights.items()}
    used = {name: by_path[path] for name, path in runner.get_constant_names_to_original_fqns().items()}
    runner.update_constant_buffer(used, use_inactive=False, validate_full_updates=True, user_managed=True)
    return tuple(used.values())


def _first_line(error: Exception) -> str:
    return str(error).strip().partition("\n")[0]
