"""Base types of the data model: frozen values, object names, canonical JSON."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from datetime import datetime
from typing import Annotated, Any, Final

from pydantic import AwareDatetime, BaseModel, BeforeValidator, ConfigDict, GetCoreSchemaHandler, StringConstraints
from pydantic.alias_generators import to_camel
from pydantic_core import CoreSchema

from ipnext.model.echoes import PLACE_CHARACTERS, cut_text, show_value

NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
"""A DNS label: lower case letters, digits and dashes, at most 63 characters."""

EngineName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$")]
"""An engine, as its entry point names it."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


def _written_time(value: object) -> object:
    """Refuse numbers, and texts of one: pydantic counts them as seconds or milliseconds of an epoch."""
    if isinstance(value, datetime) or (isinstance(value, str) and value.strip("+-. 0123456789")):
        return value
    msg = f"a time such as 2026-12-20T00:00:00Z, not {show_value(value)}"
    raise ValueError(msg)


WrittenTime = Annotated[datetime, BeforeValidator(_written_time)]
WrittenMoment = Annotated[AwareDatetime, BeforeValidator(_written_time)]
"""A time with its zone."""
"""A time of ISO 8601."""


LARGEST_FIGURE: Final = 1e12
"""The planner's largest figure: beyond it, sums lose the digits to which the rules are checked."""
SMALLEST_RATE: Final = 1e-6
"""Smallest throughput of a replica, in requests or tokens a second, and smallest priority."""
SMALLEST_UNITS: Final = 0.01
"""Smallest units of a replica: a hundred of them on one unit of hardware, and no more."""
LONGEST_SECONDS: Final = 366 * 86400.0
"""Longest wait of a change in a manifest."""


_COLLECTIONS: Final = frozenset({"list", "tuple", "set", "frozenset", "dict"})
_SCALARS: Final = frozenset({"bool", "int", "float", "str"})
_NO_SCHEMAS: Final = frozenset({"metadata", "default", "expected"})
"""Of a schema: values, not schemas."""


def _tighten(schema: Any, *, strict: bool, inside: bool = False) -> None:
    """Let the lists and mappings of a model's schema end at their first fault.

    `strict`: its scalars convert no other type. `inside`: models in it have done so themselves.
    """
    if isinstance(schema, list | tuple):
        for part in schema:
            _tighten(part, strict=strict, inside=inside)
    if not isinstance(schema, dict):
        return
    kind = schema.get("type")  # of the dictionary of fields it may be a field
    if kind == "model" and inside:
        return
    if isinstance(kind, str) and kind in _COLLECTIONS:
        schema["fail_fast"] = True
    if strict and isinstance(kind, str) and kind in _SCALARS:
        schema["strict"] = True
    for name, part in schema.items():
        if name not in _NO_SCHEMAS:
            _tighten(part, strict=strict, inside=inside or kind == "model")


class _Tightened(BaseModel):
    """A model with strict scalars, whose lists and mappings are judged up to their first fault.

    A number is a number, not a text of digits or a boolean; a float may be written as an integer. Times and lists are
    converted from their JSON. The reader of messages (`ipnext.model.wire`) is lenient, whatever the schema says, as is
    a subclass with `strict=False` in its configuration.

    Each fault is described, and strangers write long ones.
    """

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        """See pydantic."""
        schema = handler(source)
        _tighten(schema, strict=cls.model_config.get("strict", True) is True)
        return schema


class Value(_Tightened):
    """A frozen value with snake_case fields; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)


class WrittenValue(_Tightened):
    """A frozen value that a person writes or reads in YAML: camelCase fields, unknown ones refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False, alias_generator=to_camel
    )


def canonical_json(value: BaseModel | Any) -> str:
    """Return the one JSON text of a value: sorted keys, no white space. Equal values give equal bytes."""
    plain = value.model_dump(mode="json", by_alias=True) if isinstance(value, BaseModel) else value
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_of(value: BaseModel | Any) -> str:
    """Return the SHA-256 (hex) of the canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


class NameTwice(ValueError):
    """An object of JSON has a member twice: readers would differ in the one that counts."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{cut_text(name, PLACE_CHARACTERS)!r} is given twice in one object")
        self.name = name


def unique_names(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Return an object of JSON with unique members: for `object_pairs_hook`. Raises NameTwice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise NameTwice(max(counts, key=counts.__getitem__))
    return found
