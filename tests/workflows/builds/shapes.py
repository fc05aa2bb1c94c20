"""Data in the shape of a type: its nested models and nothing else, each with one field that it does not know."""

import typing
from collections.abc import Mapping
from typing import Any

from pydantic import BaseModel

UNKNOWN = {"field_of_a_newer_build": {"deep": [1, None]}}
DEPTH = 6


def shape(kind: Any, *, depth: int = 0) -> Any:
    """Plain data; None if `kind` holds no model."""
    if depth > DEPTH or not models_of(kind):
        return None
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        fields = {field.alias or name: shape(field.annotation, depth=depth + 1) for name, field in _fields(kind)}
        return {**{name: value for name, value in fields.items() if value is not None}, **UNKNOWN}
    origin, arguments = typing.get_origin(kind), typing.get_args(kind)
    nested = shape(next(a for a in arguments if models_of(a)), depth=depth + 1)
    if isinstance(origin, type) and issubclass(origin, Mapping):
        return {"1": nested}
    if isinstance(origin, type) and issubclass(origin, tuple | list | set | frozenset):
        return [nested]
    return nested


def models_of(kind: Any) -> frozenset[type[BaseModel]]:
    """Every model that a value of this type may hold."""
    found: set[type[BaseModel]] = set()
    waiting = [kind]
    while waiting:
        now = waiting.pop()
        waiting += typing.get_args(now)
        if isinstance(now, type) and issubclass(now, BaseModel) and now not in found:
            found.add(now)
            waiting += [field.annotation for _, field in _fields(now)]
    return frozenset(found)


def _fields(kind: type[BaseModel]) -> Any:
    return kind.model_fields.items()
