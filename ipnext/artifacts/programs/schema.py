"""The schema of `program.json`, as checks of plain JSON values: exactly the exporter's output.

torch's reader ignores fields that it does not know, resolves names by `getattr`, imports modules that tree
specifications name and writes names of values into Python source. So every field is listed here, every name is an
identifier, every text is of a closed set or form, and tree specifications, guards, subgraphs and objects are empty.
"""

import keyword
import re
from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from typing import Any, Final

from ipnext.artifacts.programs.expressions import SYMBOL, MalformedExpression, parse_expression
from ipnext.artifacts.programs.forms import (
    Check,
    UnsafeProgram,
    exactly,
    format_value,
    list_of,
    map_of,
    matching,
    nullable,
    record,
    refuse,
    union,
    whole,
)
from ipnext.artifacts.programs.magnitudes import check_magnitudes
from ipnext.artifacts.programs.operators import ALLOWED

FORMAT: Final = "ipnext/torch-program/v1"
ASSERTION: Final = "a size is out of range"
"""The one message of an assertion on sizes."""

STRINGS: Final[Mapping[str, AbstractSet[str]]] = {
    "approximate": frozenset({"none", "tanh"}),
    "assert_msg": frozenset({ASSERTION}),
    "indexing": frozenset({"ij", "xy"}),
    "interpolation": frozenset({"higher", "linear", "lower", "midpoint", "nearest"}),
    "mode": frozenset({"circular", "constant", "reflect", "replicate"}),
    "norm": frozenset({"backward", "forward", "ortho"}),
    "padding": frozenset({"same", "valid"}),
    "reduce": frozenset({"add", "amax", "amin", "mean", "multiply", "prod", "sum"}),
    "rounding_mode": frozenset({"floor", "trunc"}),
    "side": frozenset({"left", "right"}),
}
"""Parameter of an operator -> its allowed words. In addition only `equation` of einsum is a text."""
TYPED: Final[Mapping[str, str]] = {
    "device": "as_device",
    "dtype": "as_scalar_type",
    "layout": "as_layout",
    "memory_format": "as_memory_format",
}
"""Parameter -> its only form except none. torch accepts a whole number in place of each, unchecked: kernels then
crash."""
CHOICES: Final[Mapping[str, int]] = {"interpolation_mode": 2, "padding_mode": 2, "compute_mode": 2}
"""Parameter that is a choice written as a whole number from 0 -> its last one. For other numbers kernels return
uninitialised memory."""

_EQUATION: Final = re.compile(r"[A-Za-z.,> -]{1,200}")
_PATH_STEP: Final = re.compile(r"(?!__)[\w +\-:@/()<>=,*&#|]{1,500}")
_VERSION: Final = re.compile(r"[\w.+-]{1,60}", re.ASCII)
_LONGEST_NAME: Final = 1000
_DTYPES: Final = frozenset({*range(1, 14), *range(28, 36)})
_STRIDED: Final = 7


def _flag(value: Any) -> None:
    if type(value) is not bool:
        refuse("true or false", value)


def _number(value: Any) -> None:
    if type(value) not in {int, float} and value not in ("Infinity", "-Infinity", "NaN"):
        refuse("a number", value)


def _text(value: Any) -> None:
    if not isinstance(value, str) or len(value) > 100 * _LONGEST_NAME:
        refuse("a text", value)


def _name(value: Any) -> None:
    """Refuse all except identifiers: torch writes names of values into Python source, and its compiler into C++."""
    plain = isinstance(value, str) and value.isidentifier() and len(value) <= _LONGEST_NAME
    if not plain or keyword.iskeyword(value) or (value.startswith("__") and value.endswith("__")):
        refuse("a name (an identifier)", value)


def _parameter(value: Any) -> None:
    if not isinstance(value, str) or not value.isidentifier():
        refuse("the name of a parameter", value)


def _path(value: Any) -> None:
    """Check the path of a weight in its module; torch's code reads attributes by it."""
    if not isinstance(value, str) or not all(map(_PATH_STEP.fullmatch, value.split("."))):
        refuse("a path of plain names, such as tower.0.weight", value)


def _place(value: Any) -> None:
    if not isinstance(value, str) or not value.startswith(("state:", "constant:")):
        refuse("state:PATH or constant:PATH", value)
    _path(value.partition(":")[2])


def _target(value: Any) -> None:
    if not isinstance(value, str) or value not in ALLOWED:
        msg = (
            f"the operator {format_value(value)} is not allowed; allowed are the deterministic, "
            "functional ATen operations "
            "that ipnext/artifacts/programs/operators.py lists"
        )
        raise UnsafeProgram(msg)


def _expression(value: Any) -> None:
    try:
        parse_expression(value)
    except MalformedExpression as error:
        msg = f"the expression {format_value(value)} is not allowed: {error}"
        raise UnsafeProgram(msg) from error


# --- torch's schema

_INT: Final = whole()
_INTS: Final = list_of(_INT)
_SIZE: Final = whole(0)
_TENSOR: Final = record({"name": _name})
_HINT: Final = nullable(union({"as_int": _INT, "as_bool": _flag, "as_float": _number}))
_SYMBOLIC: Final = record({"expr_str": _expression}, {"hint": _HINT})
_SYM_INT: Final = union({"as_expr": _SYMBOLIC, "as_int": _SIZE})
_SYM_BOOL: Final = union({"as_expr": _SYMBOLIC, "as_bool": _flag})
_SYM_FLOAT: Final = union({"as_expr": _SYMBOLIC, "as_float": _number})
_DEVICE: Final = record({"type": exactly("cpu")}, {"index": exactly(None, 0)})
_DTYPE: Final = whole(min(_DTYPES), max(_DTYPES))
_TENSOR_META: Final = record(
    {
        "dtype": _DTYPE,
        "sizes": list_of(_SYM_INT),
        "requires_grad": _flag,
        "device": _DEVICE,
        "strides": list_of(_SYM_INT),
        "storage_offset": _SYM_INT,
        "layout": exactly(_STRIDED),
    }
)
_OPTIONAL_TENSOR: Final = union({"as_tensor": _TENSOR, "as_none": _flag})
_INT_ARGUMENT: Final = union({"as_name": _name, "as_int": _INT})
_FLOAT_ARGUMENT: Final = union({"as_name": _name, "as_float": _number})
_BOOL_ARGUMENT: Final = union({"as_name": _name, "as_bool": _flag})
_FORMS: Final[Mapping[str, Check]] = {
    "as_none": _flag,
    "as_tensor": _TENSOR,
    "as_tensors": list_of(_TENSOR),
    "as_int": _INT,
    "as_ints": _INTS,
    "as_float": _number,
    "as_floats": list_of(_number),
    "as_sym_int": _INT_ARGUMENT,
    "as_sym_ints": list_of(_INT_ARGUMENT),
    "as_scalar_type": _DTYPE,
    "as_memory_format": whole(0, 4),
    "as_layout": exactly(_STRIDED),
    "as_device": _DEVICE,
    "as_bool": _flag,
    "as_bools": list_of(_flag),
    "as_sym_bool": _BOOL_ARGUMENT,
    "as_sym_bools": list_of(_BOOL_ARGUMENT),
    "as_optional_tensor": _OPTIONAL_TENSOR,
    "as_optional_tensors": list_of(_OPTIONAL_TENSOR),
    "as_sym_float": _FLOAT_ARGUMENT,
    "as_sym_floats": list_of(_FLOAT_ARGUMENT),
    "as_complex": record({"real": _number, "imag": _number}),
}
"""Forms of an argument. Not included: texts (see `_check_argument`), operators, subgraphs, objects and nested
structures."""
_ARGUMENT: Final = union(_FORMS)
_TENSOR_ARGUMENT: Final = union({"as_tensor": _TENSOR})
_NAMED: Final = record({"name": _parameter, "arg": _ARGUMENT}, {"kind": nullable(whole(0, 2))})
_NAMED_TEXT: Final = record({"name": _parameter, "arg": union({"as_string": _text})}, {"kind": nullable(whole(0, 2))})


def _check_argument(value: Any) -> None:
    """Check one argument of an operator; a text is one of the words of its parameter."""
    if not (isinstance(value, dict) and isinstance(value.get("arg"), dict) and "as_string" in value["arg"]):
        _NAMED(value)
        _check_choice(value["name"], value["arg"])
        return
    _NAMED_TEXT(value)
    name, text = value["name"], value["arg"]["as_string"]
    if name == "equation" and _EQUATION.fullmatch(text):
        return
    allowed = sorted(STRINGS.get(name, ()))
    if text not in allowed:
        words = ", ".join(allowed) or "none for this parameter"
        problem = UnsafeProgram(f"the text {format_value(text)} is not allowed for {name!r}; allowed: {words}")
        problem.within(".arg.as_string")
        raise problem


def _check_choice(name: str, given: Mapping[str, Any]) -> None:
    [(form, value)] = given.items()
    if form == "as_none":
        return
    if form != TYPED.get(name, form):
        refuse(f"{TYPED[name]} or as_none for {name!r}", given)
    if name in CHOICES and not (form == "as_int" and 0 <= value <= CHOICES[name]):
        refuse(f"as_int from 0 to {CHOICES[name]} for {name!r}", given)


_NODE_FIELDS: Final = record(
    {
        "target": _target,
        "inputs": list_of(_check_argument),
        "outputs": list_of(_ARGUMENT),
        "metadata": record({}, {"nn_module_stack": _text}),
    },
    {"is_hop_single_tensor_return": nullable(_flag), "name": nullable(_name)},
)


def _node(value: Any) -> None:
    try:
        _NODE_FIELDS(value)
        _check_inference({item["name"]: item["arg"] for item in value["inputs"]})
    except UnsafeProgram as problem:
        problem.within(f" (node {format_value(value.get('name') if isinstance(value, dict) else None)})")
        raise


def _check_inference(given: Mapping[str, Any]) -> None:
    """Refuse operators in training mode: normalisations then write to their statistics, although no schema says so.

    Recurrences are random. Only a plain `false` is evaluation: torch accepts a number, or a size, as a truth value.
    """
    off = {"as_bool": False}
    learns = any(given.get(name, off) != off for name in ("training", "use_input_stats"))
    kept = any("as_none" not in given.get(name, {"as_none": True}) for name in ("running_mean", "running_var"))
    if (learns and kept) or given.get("train", off) != off:
        msg = "the operator is called as in training; allowed: as in evaluation, which writes to no statistics"
        raise UnsafeProgram(msg)


def _no_mutation(_: Any) -> None:
    msg = "the program changes a buffer or an input; a served program keeps no state between requests"
    raise UnsafeProgram(msg)


_INPUT: Final = union(
    {
        "user_input": record({"arg": _TENSOR_ARGUMENT}),
        "parameter": record({"arg": _TENSOR, "parameter_name": _path}),
        "buffer": record({"arg": _TENSOR, "buffer_name": _path, "persistent": _flag}),
        "tensor_constant": record({"arg": _TENSOR, "tensor_constant_name": _path}),
    }
)
_OUTPUT: Final = union(
    {
        "user_output": record({"arg": _TENSOR_ARGUMENT}),
        **dict.fromkeys(("buffer_mutation", "parameter_mutation", "user_input_mutation"), _no_mutation),
    }
)
_NODES: Final = list_of(_node)


def _nodes(value: Any) -> None:
    _NODES(value)
    check_magnitudes(value)


_GRAPH: Final = record(
    {
        "inputs": list_of(_TENSOR_ARGUMENT),
        "outputs": list_of(_TENSOR_ARGUMENT),
        "nodes": _nodes,
        "tensor_values": map_of(_name, _TENSOR_META),
        "sym_int_values": map_of(_name, _SYM_INT),
        "sym_bool_values": map_of(_name, _SYM_BOOL),
    },
    {
        "is_single_tensor_return": exactly(False),
        "custom_obj_values": exactly({}),
        "sym_float_values": map_of(_name, _SYM_FLOAT),
    },
)
_GRAPH_MODULE: Final = record(
    {
        "graph": _GRAPH,
        "signature": record({"input_specs": list_of(_INPUT), "output_specs": list_of(_OUTPUT)}),
        "module_call_graph": exactly([]),
    },
    {"metadata": exactly({}), "treespec_namedtuple_fields": exactly({})},
)
_RANGE: Final = record({"min_val": nullable(_INT), "max_val": nullable(_INT)})
_SYMBOL_NAME: Final = matching(SYMBOL, "the name of a symbol, such as s0")
_PROGRAM: Final = record(
    {
        "graph_module": _GRAPH_MODULE,
        "opset_version": map_of(exactly("aten"), whole(0)),
        "range_constraints": map_of(_SYMBOL_NAME, _RANGE),
        "schema_version": record({"major": whole(0, 1000), "minor": whole(0, 1000)}),
    },
    {
        "verifiers": list_of(exactly("TRAINING", "ATEN")),
        "torch_version": matching(_VERSION, "a version of torch"),
        "guards_code": exactly([]),
    },
)
_STORED: Final = record({"key": _place, "strides": nullable(list_of(whole(0)))})

check_document: Final = record(
    {
        "format": exactly(FORMAT),
        "inputs": list_of(_name),
        "outputs": list_of(_text),
        "tensors": map_of(_place, _STORED),
        "program": _PROGRAM,
    }
)
"""Check a whole `program.json`. Raises UnsafeProgram."""
