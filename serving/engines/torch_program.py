"""An exported torch program on disk without any pickle: `program.json` and `weights.safetensors`.

`torch.export.save` writes weights and example inputs by pickle. Here the graph goes as torch's own JSON schema and
every tensor as safetensors, so reading a snapshot runs no code that it brought along: the graph may only call ATen
and plain arithmetic, and its shape expressions are checked before sympy parses them.
Written by serving.export, read by the torch engine.
"""

import hashlib
import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from torch._export.serde import schema
from torch._export.serde import serialize as serde
from torch._export.verifier import SpecViolationError
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind

from ipnext.errors import LoadFailed, UnsupportedModel
from ipnext.model.value import canonical_json
from serving.deltas.weights import Weights, read_weights
from serving.engines.blueprint import Blueprint, Blueprints, TorchProgram, Weight, laid_out
from serving.engines.tensor_file import write_tensors

PROGRAM_FILE: Final = "program.json"
WEIGHTS_FILE: Final = "weights.safetensors"
FORMAT: Final = "ipnext/torch-program/v1"

_TARGET = re.compile(r"torch\.ops\.(aten|prims)\.\w+\.\w+|torch\.(sym_\w+|_sym_\w+)|_operator\.\w+|math\.\w+")
_ADDRESS = re.compile(r"^\d{6,}(@\d+)?(?=,)")
_EXPRESSION_WORD = re.compile(r"'[suz]\w*'|[A-Za-z_]\w*")
_EXPRESSION_REST = re.compile(r"[\s\d.,+\-*/()=<>!&|~]*")
_EXPRESSION_NAMES: Final = frozenset(
    [
        "Symbol",
        "Integer",
        "Rational",
        "Float",
        "Add",
        "Mul",
        "Pow",
        "Mod",
        "PythonMod",
        "ModularIndexing",
        "FloorDiv",
        "CleanDiv",
        "CeilDiv",
        "CeilToInt",
        "FloorToInt",
        "TruncToInt",
        "TruncToFloat",
        "RoundToInt",
        "ToFloat",
        "IntTrueDiv",
        "FloatTrueDiv",
        "PowByNatural",
        "FloatPow",
        "Max",
        "Min",
        "GreaterThan",
        "LessThan",
        "StrictGreaterThan",
        "StrictLessThan",
        "Equality",
        "Unequality",
        "Eq",
        "Ne",
        "Lt",
        "Le",
        "Gt",
        "Ge",
        "And",
        "Or",
        "Not",
        "Where",
        "Identity",
        "LShift",
        "RShift",
        "oo",
        "int_oo",
        "evaluate",
        "positive",
        "integer",
        "nonnegative",
        "real",
        "True",
        "False",
    ]
)
_UNREADABLE: Final = (AssertionError, AttributeError, LookupError, OSError, RuntimeError, TypeError, ValueError)
_MODULE_STACK: Final = "nn_module_stack"
_FREE_TEXT: Final = frozenset({"stack_trace", "from_node"})


def write_program(exported: ExportedProgram, outputs: Sequence[str], directory: Path) -> None:
    """Write both files. The same program and weights give the same bytes. UnsupportedModel for what has no safe form."""
    tensors = {**_tensors("state", exported.state_dict), **_tensors("constant", exported.constants)}
    stored, places = _deduplicated(tensors)
    document = {
        "format": FORMAT,
        "inputs": list(exported.graph_signature.user_inputs),
        "outputs": list(outputs),
        "tensors": places,
        "program": graph_document(exported),
    }
    for problem in _unsafe(document["program"]):
        msg = f"the module uses {problem}, which a snapshot cannot carry safely; use ATen operations only"
        raise UnsupportedModel(msg, value=problem)
    write_tensors(stored, directory / WEIGHTS_FILE)
    (directory / PROGRAM_FILE).write_text(canonical_json(document))


def read_program(directory: Path, blueprints: Blueprints | None = None) -> TorchProgram:
    """Rebuild a program from its two files. LoadFailed says what is wrong with them.

    Where `blueprints` has the program already, only the weights are read.
    """
    known = blueprints if blueprints is not None else Blueprints()
    try:
        digest = hashlib.sha256((directory / PROGRAM_FILE).read_bytes()).hexdigest()
        blueprint = known.find(digest)
        if blueprint is not None:
            return blueprint.bound(_weights(directory / WEIGHTS_FILE, blueprint.places))
        document = read_document(directory / PROGRAM_FILE)
        weights = _weights(directory / WEIGHTS_FILE, document["tensors"])
        blueprint = _blueprint(rebuild(document["program"], laid_out(weights, document["tensors"])), document)
        known.keep(digest, blueprint)
        return blueprint.bound(weights)
    except (*_UNREADABLE, SafetensorError, serde.SerializeError, SpecViolationError) as error:
        msg = f"the torch program cannot be read by torch {torch.__version__}: {error}; export the model again"
        raise LoadFailed(msg) from error


def _tensors(kind: str, values: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    for name, value in values.items():
        if not isinstance(value, torch.Tensor) or value.device.type != "cpu":
            msg = f"{name!r} is a {type(value).__name__} that is not a CPU tensor; only CPU tensors can be stored"
            raise UnsupportedModel(msg, field=name)
    return {f"{kind}:{name}": value.detach() for name, value in sorted(values.items())}


def _deduplicated(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Tensors to store, each once, and for each name its key there and, where rows are not contiguous, its strides."""
    keys: dict[tuple[Any, ...], str] = {}
    stored: dict[str, torch.Tensor] = {}
    places: dict[str, Any] = {}
    storages: set[int] = set()
    for name, tensor in tensors.items():
        identity = (tensor.data_ptr(), tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else (name,)
        key = keys.setdefault(identity, name)
        if key == name:
            stored[name] = _alone(tensor, storages)
        places[name] = {"key": key, "strides": None if tensor.is_contiguous() else list(tensor.stride())}
    return stored, places


def _alone(tensor: torch.Tensor, storages: set[int]) -> torch.Tensor:
    """The tensor as contiguous rows in memory of its own; large tables mostly are, and then nothing is copied."""
    storage = tensor.untyped_storage()
    alone = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in storages
    storages.add(storage.data_ptr())
    return tensor if alone and tensor.is_contiguous() else tensor.clone(memory_format=torch.contiguous_format)


def graph_document(exported: ExportedProgram) -> dict[str, Any]:
    """A program in torch's own JSON schema, without weights and without what tells where it was exported."""
    serializer = serde.ExportedProgramSerializer()
    try:
        program = serializer.serialize(
            exported, serialize_state_dict=False, serialize_constants=False, serialize_example_inputs=False
        ).exported_program
    except serde.SerializeError as error:
        msg = f"the module has no serialised form: {error}"
        raise UnsupportedModel(msg) from error
    document = json.loads(serde._to_json_bytes(program))  # noqa: SLF001  # torch's own JSON form has no public name
    document["guards_code"] = []
    return dict(_without_origin(document))


def _without_origin(value: Any) -> Any:
    """The document without what tells where it was exported: stack traces, and the Python modules of classes."""
    if isinstance(value, dict):
        kept = {key: _without_origin(item) for key, item in value.items() if key not in _FREE_TEXT}
        if isinstance(kept.get(_MODULE_STACK), str):
            kept[_MODULE_STACK] = _bare_classes(kept[_MODULE_STACK])
        return kept
    if isinstance(value, list):
        return [_without_origin(item) for item in value]
    return value


def _bare_classes(stack: str) -> str:
    """`KEY,PATH,package.Class;...` -> `KEY,PATH,Class;...`: a script and an imported module give the same bytes.

    The bytecode tracer's keys are addresses in memory, which differ from run to run; the path stands in for those.
    """
    entries = [entry.rpartition(",") for entry in stack.split(";")]
    plain = [(_ADDRESS.sub(rf"L__self__{place.rpartition(',')[2]}\1", place), name) for place, _, name in entries]
    return ";".join(f"{place},{name.rpartition('.')[2]}" for place, name in plain)


def _unsafe(document: Any) -> Iterator[str]:
    """What a program would call or evaluate beyond the allowed; empty for a program of write_program."""
    for key, value in _walk(document):
        if key == "target" and isinstance(value, str) and not _is_allowed_target(value):
            yield value
        elif key == "expr_str" and not (isinstance(value, str) and _is_plain_expression(value)):
            yield f"the expression {value!r}"
        elif key == "guards_code" and value:
            yield "guard code"
        elif key == "as_operator":
            yield f"the operator argument {value!r}"


def _walk(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, dict):
        for key, item in value.items():
            yield key, item
            yield from _walk(item)
    elif isinstance(value, list):
        for item in value:
            yield from _walk(item)


def _is_allowed_target(target: str) -> bool:
    return _TARGET.fullmatch(target) is not None


def _is_plain_expression(text: str) -> bool:
    words = {word for word in _EXPRESSION_WORD.findall(text) if not word.startswith("'")}
    known = all(word in _EXPRESSION_NAMES or re.fullmatch(r"[suz]\d+", word) for word in words)
    return known and _EXPRESSION_REST.fullmatch(_EXPRESSION_WORD.sub("", text)) is not None


def read_document(path: Path) -> dict[str, Any]:
    """The content of `program.json`. LoadFailed where it is no such document, or calls what a snapshot may not."""
    try:
        document = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        msg = f"{path.name} cannot be read: {error}"
        raise LoadFailed(msg) from error
    if not isinstance(document, dict) or document.get("format") != FORMAT:
        msg = f"{path.name} is not of format {FORMAT}; export the model again"
        raise LoadFailed(msg)
    problem = next(_unsafe(document["program"]), None)
    if problem is not None:
        msg = f"{PROGRAM_FILE} calls {problem}, which a snapshot may not; export the model again"
        raise LoadFailed(msg)
    return document


def read_tensors(path: Path, places: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    """All tensors of a program document by their names there, laid out in memory as they were exported."""
    return laid_out(_weights(path, places), places)


def _weights(path: Path, places: Mapping[str, Any]) -> Weights:
    return read_weights(path, (place["key"] for place in places.values()))


def rebuild(document: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> ExportedProgram:
    """A checked program document with its weights as torch's own object; nodes have no metadata."""
    plain = _without_metadata(document)
    program = serde._dict_to_dataclass(schema.ExportedProgram, plain)  # type: ignore[no-untyped-call]  # noqa: SLF001
    state = {name.removeprefix("state:"): t for name, t in tensors.items() if name.startswith("state:")}
    constants = {name.removeprefix("constant:"): t for name, t in tensors.items() if name.startswith("constant:")}
    for name in _parameter_names(document):
        state[name] = torch.nn.Parameter(state[name], requires_grad=False)
    return serde.ExportedProgramDeserializer().deserialize(program, state, constants, None)


def _parameter_names(document: Mapping[str, Any]) -> tuple[str, ...]:
    specs = document["graph_module"]["signature"]["input_specs"]
    return tuple(spec["parameter"]["parameter_name"] for spec in specs if "parameter" in spec)


def _without_metadata(value: Any) -> Any:
    """The document with empty node metadata: running needs none of it, and reading it would resolve names."""
    if isinstance(value, dict):
        return {key: {} if key == "metadata" else _without_metadata(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_without_metadata(item) for item in value]
    return value


def _blueprint(exported: ExportedProgram, document: Mapping[str, Any]) -> Blueprint:
    metas = document["program"]["graph_module"]["graph"]["tensor_values"]
    fixed: list[Any] = []
    weights: list[Weight] = []
    slots: dict[str, int] = {}
    for position, spec in enumerate(exported.graph_signature.input_specs):
        value: Any = None
        if spec.kind == InputKind.USER_INPUT:
            slots[spec.arg.name] = position
            value = spec.arg.value if isinstance(spec.arg, ConstantArgument) else None
        else:
            kind = "state" if spec.target in exported.state_dict else "constant"
            weights.append(Weight(position, f"{kind}:{spec.target}", metas[spec.arg.name]["requires_grad"]))
        fixed.append(value)
    inputs = tuple(document["inputs"])
    graph_inputs = tuple(slots)
    if graph_inputs != inputs:
        msg = f"the graph takes {list(graph_inputs)}, the file says {list(inputs)}"
        raise ValueError(msg)
    return Blueprint(
        module=exported.graph_module,
        inputs=inputs,
        outputs=tuple(document["outputs"]),
        slots=tuple(slots[name] for name in inputs),
        fixed=tuple(fixed),
        weights=tuple(weights),
        places=document["tensors"],
    )
