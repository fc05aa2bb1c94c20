"""The field `inputs` of an OpenAI request: tensors for the nodes before the generator, as plain JSON lists. Pure."""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ipnext.errors import InvalidInput
from ipnext.model.registry.registry import TensorSpec
from serving.protocol.tensors import Tensor, check_shape, from_json

INPUTS: Final = "inputs"


def read_inputs(body: Mapping[str, Any], specs: Sequence[TensorSpec]) -> dict[str, Tensor]:
    """Return name -> tensor, exactly those of `specs`.

    InvalidInput names one that is missing, unknown or of another form.
    """
    given = body.get(INPUTS, {})
    known = {spec.name: spec for spec in specs}
    told = ", ".join(f"{spec.name} {_format_spec(spec)}" for spec in specs) or "none"
    if not isinstance(given, dict):
        msg = f"{INPUTS}: must be an object of lists ({told}), got a {type(given).__name__}"
        raise InvalidInput(msg, field=INPUTS, allowed=tuple(known))
    for name in given.keys() - known.keys():
        msg = f"{INPUTS}.{name[:80]}: this model takes no such input; it takes: {told}"
        raise InvalidInput(msg, field=f"{INPUTS}.{name[:80]}", allowed=tuple(known))
    for name in known.keys() - given.keys():
        msg = f"{INPUTS}.{name}: missing; this model takes: {told}"
        raise InvalidInput(msg, field=f"{INPUTS}.{name}", allowed=tuple(known))
    return {name: _tensor(spec, given[name]) for name, spec in known.items()}


def _tensor(spec: TensorSpec, value: object) -> Tensor:
    field = f"{INPUTS}.{spec.name}"
    shape = _shape(value)
    if len(shape) != len(spec.shape) or any(
        want not in (-1, size) for want, size in zip(spec.shape, shape, strict=True)
    ):
        msg = f"{field}: must be {_form(spec)}, got {_describe_found(value, shape)}"
        raise InvalidInput(msg, field=field)
    if 0 in shape:
        msg = f"{field}: must have at least one element, got shape {list(shape)}"
        raise InvalidInput(msg, field=field)
    try:
        return from_json(spec.name, spec.datatype, check_shape(spec.name, list(shape)), value)
    except InvalidInput as error:
        msg = f"{field}: {error.message}"
        raise InvalidInput(msg, field=field) from error


def _shape(value: object) -> tuple[int, ...]:
    """Return the shape by the first element of each level; `from_json` checks that the others match."""
    shape: list[int] = []
    while isinstance(value, list):
        shape.append(len(value))
        value = value[0] if value else None
    return tuple(shape)


def _format_spec(spec: TensorSpec) -> str:
    return f"{spec.datatype}{list(spec.shape)}"


def _form(spec: TensorSpec) -> str:
    """Describe the JSON form of an input."""
    if len(spec.shape) != 1:
        return f"{_format_spec(spec)} as nested lists"
    return f"a list of {'texts' if spec.datatype == 'BYTES' else 'values'} ({_format_spec(spec)})"


def _describe_found(value: object, shape: tuple[int, ...]) -> str:
    return f"shape {list(shape)}" if shape else f"a {type(value).__name__}"
