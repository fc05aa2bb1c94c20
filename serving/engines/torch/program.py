"""An exported torch program on disk without pickle: `program.json` and `weights.safetensors`.

`torch.export.save` writes weights and example inputs by pickle. Here the graph is written in torch's own JSON schema
and every tensor as safetensors. Before torch reads the graph, ipnext.artifacts.programs.schema checks that it has only
listed operators and plain data; expressions and tree specifications are built here and never evaluated from text.

Written by serving.export, read by the torch engine.
"""

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from safetensors import SafetensorError
from torch._export.serde import schema
from torch._export.serde import serialize as serde
from torch._export.verifier import SpecViolationError
from torch.export import ExportedProgram
from torch.export.graph_signature import ConstantArgument, InputKind

from ipnext.artifacts.programs import reader
from ipnext.artifacts.programs.forms import UnsafeProgram
from ipnext.artifacts.programs.schema import ASSERTION, FORMAT, check_document
from ipnext.errors import LoadFailed, UnsupportedModel
from ipnext.model.value import canonical_json
from serving.engines.torch.expressions import build_expression
from serving.engines.torch.fx.packed_lookup import join_lookups, packed_arguments
from serving.engines.torch.guards import guard_calls
from serving.engines.torch.program_cache import ProgramTemplate, TemplateCache, TorchProgram, WeightArgument, lay_out
from serving.engines.torch.schema_objects import build_object
from serving.weights.tensor_file import write_tensors
from serving.weights.weights import Weights, read_weights

PROGRAM_FILE: Final = reader.PROGRAM_FILE
WEIGHTS_FILE: Final = "weights.safetensors"

_ADDRESS = re.compile(r"^\d{6,}(@\d+)?(?=,)")
_UNREADABLE: Final = (
    *(ArithmeticError, AssertionError, AttributeError, LookupError, OSError, RuntimeError, SyntaxError, TypeError),
    ValueError,
)
_MODULE_STACK: Final = "nn_module_stack"
_ASSERT: Final = "torch.ops.aten._assert_scalar.default"
_KNOWN: Final[Mapping[str, frozenset[str]]] = {
    "program": frozenset(
        {
            *("graph_module", "guards_code", "opset_version", "range_constraints", "schema_version"),
            *("torch_version", "verifiers"),
        }
    ),
    "module": frozenset({"graph", "metadata", "module_call_graph", "signature", "treespec_namedtuple_fields"}),
    "graph": frozenset(
        {
            *("custom_obj_values", "inputs", "is_single_tensor_return", "nodes", "outputs", "tensor_values"),
            *("sym_bool_values", "sym_float_values", "sym_int_values"),
        }
    ),
    "node": frozenset({"inputs", "is_hop_single_tensor_return", "metadata", "name", "outputs", "target"}),
}
"""Fields of torch's schema. A later torch may have others: they are dropped if empty, else refused."""
_LEAF: Final[Mapping[str, Any]] = {"type": None, "context": None, "children_spec": []}


def write_program(exported: ExportedProgram, outputs: Sequence[str], directory: Path) -> None:
    """Write both files. The same program and weights give the same bytes.

    UnsupportedModel if something has no safe form.
    """
    tensors = {**_tensors("state", exported.state_dict), **_tensors("constant", exported.constants)}
    stored, places = _deduplicate(tensors)
    document = {
        "format": FORMAT,
        "inputs": list(exported.graph_signature.user_inputs),
        "outputs": list(outputs),
        "tensors": places,
        "program": graph_document(exported),
    }
    try:
        check_document(document)
    except UnsafeProgram as problem:
        msg = f"a snapshot cannot carry the program safely ({problem}); use deterministic ATen operations only"
        raise UnsupportedModel(msg) from problem
    write_tensors(stored, directory / WEIGHTS_FILE)
    (directory / PROGRAM_FILE).write_text(canonical_json(document))


def read_program(directory: Path, templates: TemplateCache | None = None) -> TorchProgram:
    """Rebuild a program from its two files. LoadFailed names their fault.

    If `templates` has the program already, only the weights are read.
    """
    known = templates if templates is not None else TemplateCache()
    try:
        digest = hashlib.sha256((directory / PROGRAM_FILE).read_bytes()).hexdigest()
        template = known.find(digest)
        if template is not None:
            return template.bound(_weights(directory / WEIGHTS_FILE, template.places))
        document = read_document(directory / PROGRAM_FILE)
        weights = _weights(directory / WEIGHTS_FILE, document["tensors"])
        template = _template(rebuild(document, lay_out(weights, document["tensors"])), document)
        known.keep(digest, template)
        return template.bound(weights)
    except (*_UNREADABLE, SafetensorError, serde.SerializeError, SpecViolationError) as error:
        msg = f"the torch program cannot be read by torch {torch.__version__}: {error}; export the model again"
        raise LoadFailed(msg) from error


def _tensors(kind: str, values: Mapping[str, Any]) -> dict[str, torch.Tensor]:
    for name, value in values.items():
        if not isinstance(value, torch.Tensor) or value.device.type != "cpu":
            msg = f"{name!r} is a {type(value).__name__} that is not a CPU tensor; only CPU tensors can be stored"
            raise UnsupportedModel(msg, field=name)
    return {f"{kind}:{name}": value.detach() for name, value in sorted(values.items())}


def _deduplicate(tensors: Mapping[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, Any]]:
    """Return the tensors to store, each once, and for each name its key and strides.

    The strides are left out for a contiguous tensor.
    """
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
    """Return the tensor as contiguous rows in unshared memory; large tables mostly are, and are not copied."""
    storage = tensor.untyped_storage()
    alone = storage.nbytes() == tensor.nbytes and storage.data_ptr() not in storages
    storages.add(storage.data_ptr())
    return tensor if alone and tensor.is_contiguous() else tensor.clone(memory_format=torch.contiguous_format)


def graph_document(exported: ExportedProgram) -> dict[str, Any]:
    """Return a program in torch's own JSON schema, without weights and without traces of its exporter."""
    serializer = serde.ExportedProgramSerializer()
    try:
        program = serializer.serialize(
            exported, serialize_state_dict=False, serialize_constants=False, serialize_example_inputs=False
        ).exported_program
    except serde.SerializeError as error:
        msg = f"the module has no serialised form: {error}"
        raise UnsupportedModel(msg) from error
    return _plain_document(json.loads(serde._to_json_bytes(program)))  # noqa: SLF001  # torch's JSON form has no public name


def _plain_document(program: Mapping[str, Any]) -> dict[str, Any]:
    """Remove traces of the exporter (stack traces, Python modules of classes) and fields that reading regenerates."""
    document = _keep_known("program", program)
    module = document["graph_module"] = _keep_known("module", program["graph_module"])
    graph = module["graph"] = _keep_known("graph", module["graph"])
    graph["nodes"] = [_plain_node(node) for node in graph["nodes"]]
    module["module_call_graph"], document["guards_code"] = [], []
    return document


def _keep_known(kind: str, value: Mapping[str, Any]) -> dict[str, Any]:
    return {key: item for key, item in value.items() if key in _KNOWN[kind] or item}


def _plain_node(value: Mapping[str, Any]) -> dict[str, Any]:
    node = _keep_known("node", value)
    stack = value["metadata"].get(_MODULE_STACK)
    node["metadata"] = {} if stack is None else {_MODULE_STACK: _bare_classes(stack)}
    if node["target"] == _ASSERT:
        node["inputs"] = [_without_message(item) for item in node["inputs"]]
    return node


def _without_message(item: Mapping[str, Any]) -> Mapping[str, Any]:
    return {**item, "arg": {"as_string": ASSERTION}} if "as_string" in item["arg"] else item


def _bare_classes(stack: str) -> str:
    """Reduce `KEY,PATH,package.Class;...` to `KEY,PATH,Class;...`: a script and an imported module give the same bytes.

    The bytecode tracer's keys are addresses in memory, which differ between runs; they are replaced by the path.
    """
    entries = [entry.rpartition(",") for entry in stack.split(";")]
    plain = [(_ADDRESS.sub(rf"L__self__{place.rpartition(',')[2]}\1", place), name) for place, _, name in entries]
    return ";".join(f"{place},{name.rpartition('.')[2]}" for place, name in plain)


def read_document(path: Path) -> dict[str, Any]:
    """Read `program.json`. LoadFailed if it is no such document, or has calls that a snapshot may not make."""
    try:
        return reader.parse_program(path.read_bytes())
    except OSError as error:
        msg = f"{path.name} cannot be read: {error}"
        raise LoadFailed(msg) from error
    except UnsafeProgram as problem:
        msg = f"{PROGRAM_FILE} holds something which a snapshot may not: {problem}; export the model again"
        raise LoadFailed(msg) from problem


def _weights(path: Path, places: Mapping[str, Any]) -> Weights:
    return read_weights(path, (place["key"] for place in places.values()))


def rebuild(document: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> ExportedProgram:
    """Build torch's object from a document and its weights; nodes have no metadata. UnsafeProgram as `parse_program`.

    The only place where torch reads a document, which is therefore checked here regardless of earlier checks.
    """
    check_document(document)
    plain = _readable(document)
    program = build_object(schema.ExportedProgram, plain)
    state = {name.removeprefix("state:"): t for name, t in tensors.items() if name.startswith("state:")}
    constants = {name.removeprefix("constant:"): t for name, t in tensors.items() if name.startswith("constant:")}
    for name in _parameter_names(document["program"]):
        state[name] = torch.nn.Parameter(state[name], requires_grad=False)
    return serde.ExportedProgramDeserializer().deserialize(program, state, constants, None)


def _parameter_names(document: Mapping[str, Any]) -> tuple[str, ...]:
    specs = document["graph_module"]["signature"]["input_specs"]
    return tuple(spec["parameter"]["parameter_name"] for spec in specs if "parameter" in spec)


def _readable(document: Mapping[str, Any]) -> dict[str, Any]:
    """Return the document for torch: no metadata, expressions as sympy objects, and a call signature made here."""
    program = _with_expressions(document["program"])
    module = program["graph_module"]
    module["graph"]["nodes"] = [{**node, "metadata": {}} for node in module["graph"]["nodes"]]
    module["module_call_graph"] = [{"fqn": "", "signature": _call(document["inputs"], len(document["outputs"]))}]
    return dict(program)


def _with_expressions(value: Any) -> Any:
    if isinstance(value, dict):
        return {
            key: build_expression(item) if key == "expr_str" else _with_expressions(item) for key, item in value.items()
        }
    if isinstance(value, list):
        return [_with_expressions(item) for item in value]
    return value


def _call(inputs: Sequence[str], outputs: int) -> dict[str, Any]:
    """Return a call signature with all inputs by name, and the outputs as a tuple: torch needs no names for them."""
    empty = {"type": "builtins.tuple", "context": "null", "children_spec": []}
    named = {"type": "builtins.dict", "context": json.dumps(inputs), "children_spec": [_LEAF] * len(inputs)}
    arguments = {"type": "builtins.tuple", "context": "null", "children_spec": [empty, named]}
    answer = {"type": "builtins.tuple", "context": "null", "children_spec": [_LEAF] * outputs}
    return {
        "forward_arg_names": list(inputs),
        "in_spec": json.dumps([1, arguments]),
        "inputs": [],
        "out_spec": json.dumps([1, answer]),
        "outputs": [],
    }


def _template(exported: ExportedProgram, document: Mapping[str, Any]) -> ProgramTemplate:
    metas = document["program"]["graph_module"]["graph"]["tensor_values"]
    fixed: list[Any] = []
    weights: list[WeightArgument] = []
    slots: dict[str, int] = {}
    for position, spec in enumerate(exported.graph_signature.input_specs):
        value: Any = None
        if spec.kind == InputKind.USER_INPUT:
            slots[spec.arg.name] = position
            value = spec.arg.value if isinstance(spec.arg, ConstantArgument) else None
        else:
            kind = "state" if spec.target in exported.state_dict else "constant"
            weights.append(WeightArgument(position, f"{kind}:{spec.target}", metas[spec.arg.name]["requires_grad"]))
        fixed.append(value)
    inputs = tuple(document["inputs"])
    graph_inputs = tuple(slots)
    if graph_inputs != inputs:
        msg = f"the graph takes {list(graph_inputs)}, the file says {list(inputs)}"
        raise ValueError(msg)
    join_lookups(exported.graph_module)
    guard_calls(exported.graph_module)
    return ProgramTemplate(
        module=exported.graph_module,
        inputs=inputs,
        outputs=tuple(document["outputs"]),
        slots=tuple(slots[name] for name in inputs),
        fixed=tuple(fixed),
        weights=tuple(weights),
        places=document["tensors"],
        packed=packed_arguments(exported.graph_module.graph),
    )
