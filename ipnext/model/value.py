"""Base types of the data model: frozen values, object names, canonical JSON."""

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from typing import Annotated, Any, Final

from pydantic import BaseModel, ConfigDict, StringConstraints
from pydantic.alias_generators import to_camel

NAME_PATTERN = r"^[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?$"

Name = Annotated[str, StringConstraints(pattern=NAME_PATTERN)]
"""A DNS label: lower case letters, digits and dashes, at most 63 characters."""

EngineName = Annotated[str, StringConstraints(pattern=r"^[a-z0-9][a-z0-9_.-]{0,62}$")]
"""An engine, as its entry point names it."""

Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-f]{64}$")]


LARGEST_FIGURE: Final = 1e12
"""The planner takes no larger one: beyond it, sums lose the digits that the rules are checked to."""
SMALLEST_RATE: Final = 1e-6
"""Of what a replica answers, in requests or tokens a second, and of priorities."""
SMALLEST_UNITS: Final = 0.01
"""Of a replica: a hundred of them on one unit of hardware, and no more."""
LONGEST_SECONDS: Final = 366 * 86400.0
"""Of what a manifest has a change wait for."""


class Value(BaseModel):
    """A frozen value with snake_case fields; unknown fields are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False)


class Written(BaseModel):
    """A frozen value that a person writes or reads in YAML: camelCase fields, unknown ones refused."""

    model_config = ConfigDict(
        frozen=True, extra="forbid", populate_by_name=True, allow_inf_nan=False, alias_generator=to_camel
    )


def canonical_json(value: BaseModel | Any) -> str:
    """The one JSON text of a value: sorted keys, no white space. The same value gives the same bytes."""
    plain = value.model_dump(mode="json", by_alias=True) if isinstance(value, BaseModel) else value
    return json.dumps(plain, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)


def digest_of(value: BaseModel | Any) -> str:
    """SHA-256 (hex) of the canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


class NameTwice(ValueError):
    """An object of JSON names a member twice: readers would differ over which one counts."""

    def __init__(self, name: str) -> None:
        super().__init__(f"{name!r} is given twice in one object")
        self.name = name


def unique_names(pairs: Sequence[tuple[str, Any]]) -> dict[str, Any]:
    """Make an object of JSON that names each member once: for `object_pairs_hook`. NameTwice."""
    found = dict(pairs)
    if len(found) != len(pairs):
        counts = Counter(name for name, _ in pairs)
        raise NameTwice(max(counts, key=counts.__getitem__))
    return found
