"""Errors of pydantic in the words of YAML, for a person who wrote a manifest and knows no Python.

Every reader of pydantic's faults uses `faults_of`: a document of a stranger may have millions.
"""

import functools
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Final

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from ipnext.errors import InvalidInput
from ipnext.model.echoes import join_steps

MOST_FAULTS: Final = 1_000
"""Most faults of a value that are described: pydantic takes a kilobyte for each, and describes all or none."""

_WORDS: Final[Mapping[str, str]] = {
    "Value error, ": "",
    "a valid tuple": "a list",
    "Tuple should have": "The list should have",
    " after validation": "",
    "a valid dictionary": "a mapping",
}


def fault_text(fault: ErrorDetails) -> str:
    """Return the message of a fault."""
    text = fault["msg"]
    for python, yaml in _WORDS.items():
        text = text.replace(python, yaml)
    return text


def faults_of(error: ValidationError) -> list[ErrorDetails]:
    """Return the faults of a pydantic error.

    If there are more than MOST_FAULTS, pydantic does not describe them, and the one fault of the result counts them.
    """
    found = error.error_count()
    if found > MOST_FAULTS:
        text = f"it has {found} faults, too many to describe; allowed: at most {MOST_FAULTS}"
        return [ErrorDetails(type="too_many_faults", loc=(), msg=text, input=None)]
    return error.errors(include_url=False)


def first_line(error: ValidationError, whole: str = "") -> str:
    """Return the place and the text of a pydantic error's first fault; `whole` names the place of the whole value."""
    first = faults_of(error)[0]
    place = join_steps(first["loc"]) or whole
    return f"{place}: {first['msg']}" if place else first["msg"]


def invalid_input(error: ValidationError, model: type[BaseModel]) -> InvalidInput:
    """Return the first fault of a pydantic error as one line: path, value, allowed values."""
    return first_fault(faults_of(error), model)


def first_fault(found: Sequence[ErrorDetails], model: type[BaseModel]) -> InvalidInput:
    """Return the first of a model's faults as one line: path, value, allowed values."""
    faults = _own_faults(found)
    first = next((fault for fault in faults if fault["type"] == "extra_forbidden"), faults[0])
    location = first["loc"]
    field = join_steps(location)
    if first["type"] == "extra_forbidden":
        allowed = _allowed_fields(model, location[:-1])
        msg = f"{field}: unknown field; allowed here: {', '.join(allowed)}"
        return InvalidInput(msg, field=field, value=first["input"], allowed=allowed)
    value = first["input"]
    given = "" if first["type"] in {"missing", "value_error", "too_many_faults"} else f" (got {value!r:.200})"
    text = fault_text(first)
    more = len(faults) - 1
    msg = f"{field}: {text}{given}" if field else f"{text}{given}"
    return InvalidInput(msg + (f" (and {more} more)" if more else ""), field=field, value=value)


def _own_faults(faults: Sequence[ErrorDetails]) -> list[ErrorDetails]:
    """Return the faults without those of lists that are too short because their items have faults."""
    at_or_below = Counter(fault["loc"][:depth] for fault in faults for depth in range(len(fault["loc"]) + 1))
    return [fault for fault in faults if fault["type"] != "too_short" or at_or_below[fault["loc"]] == 1]


@functools.lru_cache
def _schema_of(model: Any) -> dict[str, Any]:
    """Return a pydantic model's JSON schema, which is made once: that takes as long as ten refusals."""
    found: dict[str, Any] = model.model_json_schema(by_alias=True)
    return found


def _allowed_fields(model: Any, location: tuple[int | str, ...]) -> tuple[str, ...]:
    """Return the allowed fields of a pydantic model at an error's location."""
    schema = _schema_of(model)
    definitions = schema.get("$defs", {})

    def resolve(node: dict[str, Any]) -> dict[str, Any]:
        while True:
            if "$ref" in node:
                node = definitions[node["$ref"].rsplit("/", 1)[1]]
            elif "anyOf" in node:
                node = next((n for n in node["anyOf"] if n.get("type") != "null"), {})
            elif "allOf" in node:
                node = node["allOf"][0]
            else:
                return node

    node = resolve(schema)
    for step in location:
        if isinstance(step, int):
            node = resolve(node.get("items", {}))
        else:
            node = resolve(node.get("properties", {}).get(step) or node.get("additionalProperties") or {})
    return tuple(sorted(node.get("properties", {})))
