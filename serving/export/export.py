"""Export of a torch module as a snapshot directory. Called by an ML engineer's training code and by the optimization.

A snapshot is `program.json`, `weights.safetensors` and, last, `snapshot.json`. No file contains a pickle.
"""

import os
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

import torch
from torch import nn
from torch.export import Dim, ExportedProgram
from torch.export import export as torch_export

from ipnext import __version__
from ipnext.errors import InvalidInput, UnsupportedModel
from ipnext.model.registry.checking import GOLDEN_FILE
from ipnext.model.registry.optimization import REPLAY_FACTS, REPLAY_FILE
from ipnext.model.registry.registry import SNAPSHOT_FILE, Datatype, Signature, SnapshotManifest, TensorSpec
from ipnext.model.value import canonical_json
from serving.engines.torch.engine import ENGINE
from serving.engines.torch.fx.functionalize import functional
from serving.engines.torch.program import PROGRAM_FILE, WEIGHTS_FILE, write_program
from serving.export.checks import check_answers, name_outputs, quiet_tracer, unsupported_error
from serving.export.golden import write_golden
from serving.snapshots.directory import artifact_file, check_directory, half_written, write_last
from serving.weights.tensor_file import write_tensors

DATATYPES: Final[Mapping[torch.dtype, Datatype]] = {
    torch.bool: "BOOL",
    torch.uint8: "UINT8",
    torch.uint16: "UINT16",
    torch.uint32: "UINT32",
    torch.uint64: "UINT64",
    torch.int8: "INT8",
    torch.int16: "INT16",
    torch.int32: "INT32",
    torch.int64: "INT64",
    torch.float16: "FP16",
    torch.bfloat16: "BF16",
    torch.float32: "FP32",
    torch.float64: "FP64",
}
_FLAT_WEIGHTS: Final = (
    r"The tensor attributes? (self[\w.]*\._flat_weights\[\d+\](, )?)+ (was|were) assigned during export"
)
"""torch's warning about its own recurrent layers, which 2.15 emits for each of them."""

_ROWS: Final = 3
"""Batch size of every export, so that the digest does not depend on the examples'; 1 would count as a constant."""


def export_model(  # noqa: PLR0913 - the last four are rarely given
    module: nn.Module,
    example_inputs: Mapping[str, torch.Tensor],
    directory: str | os.PathLike[str],
    *,
    parent: str | None = None,
    request_inputs: Sequence[str] = (),
    replay: Mapping[str, torch.Tensor] | None = None,
    golden: Mapping[str, Mapping[str, torch.Tensor]] | None = None,
) -> SnapshotManifest:
    """Export `module` in evaluation mode as a snapshot in `directory`, which must not exist or be empty.

    `example_inputs` name the arguments of `module.forward`; dimension 0 of each is the batch and stays free, all other
    sizes are fixed. `parent` is the digest of the snapshot that this one was derived from. `request_inputs` are those
    that a request may give once, with batch 1, for all of its rows; examples of those may have batch 1 too. `replay`
    are requests for the steps of `spec.optimization`: a tensor for each input, and `labels:OUTPUT`, of as many rows.
    `golden` are requests by name, whose outputs are recorded: the platform compares its own with them.

    The written files are checked against the module for equal bits before the directory gets its name. The same module
    and weights give the same digest. InvalidInput if examples do not fit; UnsupportedModel names the line of the module
    that cannot be exported.
    """
    examples = _check_examples(example_inputs, request_inputs)
    target = check_directory(Path(directory))
    with _evaluation_mode(module), torch.no_grad():
        outputs = _output_names(module, examples)
        exported = _functional(_export(module, examples), module)
        with half_written(target) as draft:
            _write(exported, outputs, draft, module)
            check_answers(module, draft, examples)
            signature = _signature(exported, outputs, request_inputs)
            if replay is not None:
                _write_replay(replay, signature, draft)
            if golden is not None:
                write_golden(module, golden, signature, draft)
            manifest = _manifest(signature, draft, parent)
            write_last(draft / SNAPSHOT_FILE, canonical_json(manifest))
    return manifest


def _check_examples(
    example_inputs: Mapping[str, torch.Tensor], request_inputs: Sequence[str]
) -> dict[str, torch.Tensor]:
    if not isinstance(example_inputs, Mapping) or not example_inputs:
        msg = "example_inputs: must be a mapping of input name to tensor with at least one entry"
        raise InvalidInput(msg, field="example_inputs")
    _check_request_inputs(example_inputs, request_inputs)
    sizes: dict[str, int] = {}
    for name, tensor in example_inputs.items():
        sizes[name] = _check_batch(name, tensor)
    own = {size for name, size in sizes.items() if name not in request_inputs or size != 1}
    if len(own) > 1 or 0 in own:
        msg = f"example_inputs: dimension 0 is the batch and must be one size >= 1 for all, got {sizes}"
        raise InvalidInput(msg, field="example_inputs", value=sizes)
    rows = torch.arange(_ROWS)
    return {name: tensor.detach()[rows % sizes[name]] for name, tensor in example_inputs.items()}


def _check_request_inputs(example_inputs: Mapping[str, torch.Tensor], request_inputs: Sequence[str]) -> None:
    if isinstance(request_inputs, str):
        msg = f"request_inputs: must be a list of names of inputs, got the text {request_inputs!r}"
        raise InvalidInput(msg, field="request_inputs", value=request_inputs)
    for name in request_inputs:
        if name not in example_inputs:
            msg = f"request_inputs: {name!r} is no input; the inputs are {', '.join(map(str, example_inputs))}"
            raise InvalidInput(msg, field="request_inputs", value=name, allowed=tuple(map(str, example_inputs)))


def _check_batch(name: str, tensor: object) -> int:
    if not isinstance(name, str) or not name.isidentifier():
        msg = f"example_inputs: {name!r} must be a name of an argument of forward"
        raise InvalidInput(msg, field="example_inputs", value=name)
    if not isinstance(tensor, torch.Tensor):
        msg = f"example_inputs.{name}: must be a torch.Tensor, got {type(tensor).__name__}"
        raise InvalidInput(msg, field=f"example_inputs.{name}")
    if tensor.dim() == 0 or tensor.dtype not in DATATYPES or tensor.device.type != "cpu":
        msg = (
            f"example_inputs.{name}: must be a CPU tensor of at least one dimension and a V2 datatype, "
            f"got {tensor.dtype} of shape {list(tensor.shape)} on {tensor.device}"
        )
        raise InvalidInput(msg, field=f"example_inputs.{name}", allowed=tuple(DATATYPES.values()))
    return int(tensor.shape[0])


@contextmanager
def _evaluation_mode(module: nn.Module) -> Iterator[None]:
    training = [child for child in module.modules() if child.training]
    module.eval()
    try:
        yield
    finally:
        for child in training:
            child.training = True


def _output_names(module: nn.Module, examples: Mapping[str, torch.Tensor]) -> tuple[str, ...]:
    try:
        answer = name_outputs(module(**{name: tensor.clone() for name, tensor in examples.items()}))
    except (TypeError, RuntimeError, ValueError, IndexError) as error:
        msg = f"example_inputs: the module's own forward fails on them: {error}"
        raise InvalidInput(msg, field="example_inputs") from error
    for name, tensor in answer.items():
        if not (isinstance(name, str) and isinstance(tensor, torch.Tensor) and tensor.dtype in DATATYPES):
            raise unsupported_error(
                module,
                f"output {name!r} is not a tensor of a V2 datatype",
                hint="return a tensor, a dict of named tensors or a tuple of tensors",
            )
    return tuple(answer)


def _export(module: nn.Module, examples: Mapping[str, torch.Tensor]) -> ExportedProgram:
    """Export without the bytecode tracer; if that fails, with it: each accepts modules that the other does not."""
    batch = Dim("batch", min=1)
    shapes = {name: {0: batch} for name in examples}
    failures: list[Exception] = []
    for strict in (False, True):
        try:
            with quiet_tracer(), warnings.catch_warnings():
                warnings.filterwarnings("ignore", message=_FLAT_WEIGHTS, category=UserWarning)
                return torch_export(module, (), kwargs=dict(examples), dynamic_shapes=shapes, strict=strict)
        except Exception as error:  # noqa: BLE001  # the tracer runs the user's code and raises anything
            failures.append(error)
    raise unsupported_error(module, *failures) from failures[0]


def _functional(exported: ExportedProgram, module: nn.Module) -> ExportedProgram:
    try:
        with quiet_tracer():
            return functional(exported)
    except UnsupportedModel as error:
        raise unsupported_error(module, error) from error


def _write(exported: ExportedProgram, outputs: tuple[str, ...], draft: Path, module: nn.Module) -> None:
    try:
        write_program(exported, outputs, draft)
    except UnsupportedModel as error:
        raise unsupported_error(module, error) from error


def _write_replay(replay: Mapping[str, torch.Tensor], signature: Signature, draft: Path) -> None:
    """Write the replay set. InvalidInput if names or numbers of rows do not fit the signature."""
    inputs = {spec.name for spec in signature.inputs}
    known = inputs | {f"{prefix}{spec.name}" for prefix in REPLAY_FACTS for spec in signature.outputs}
    wrong = sorted((inputs - replay.keys()) | (replay.keys() - known))
    rows = {len(tensor) if tensor.dim() else 0 for tensor in replay.values()}
    if wrong or len(rows) != 1 or 0 in rows:
        what = (
            f"{wrong[0]!r} is {'missing' if wrong[0] in inputs else 'unknown'}"
            if wrong
            else f"they have {sorted(rows)} rows"
        )
        needed = ", ".join(sorted(inputs))
        msg = f"replay: {what}; needed: {needed}, of one number of rows; allowed as well: labels:OUTPUT"
        raise InvalidInput(msg, field="replay", allowed=sorted(known))
    write_tensors({name: tensor.detach().contiguous() for name, tensor in replay.items()}, draft / REPLAY_FILE)


def _manifest(signature: Signature, draft: Path, parent: str | None) -> SnapshotManifest:
    names = (PROGRAM_FILE, WEIGHTS_FILE, REPLAY_FILE, GOLDEN_FILE)
    return SnapshotManifest(
        engine=ENGINE,
        signature=signature,
        files=tuple(artifact_file(draft / name) for name in names if (draft / name).exists()),
        producer={"ipnext": __version__, "torch": str(torch.__version__)},
        parent=parent,
    )


def _signature(exported: ExportedProgram, outputs: tuple[str, ...], request_inputs: Sequence[str]) -> Signature:
    graph = exported.graph_signature
    values = {node.name: node.meta["val"] for node in exported.graph.nodes if "val" in node.meta}
    return Signature(
        inputs=tuple(_spec(str(name), values[name]) for name in graph.user_inputs),
        outputs=tuple(_spec(name, values[node]) for name, node in zip(outputs, graph.user_outputs, strict=True)),
        request_inputs=tuple(str(name) for name in graph.user_inputs if name in request_inputs),
    )


def _spec(name: str, value: torch.Tensor) -> TensorSpec:
    shape = tuple(size if isinstance(size, int) else -1 for size in value.shape)
    return TensorSpec(name=name, datatype=DATATYPES[value.dtype], shape=shape)
