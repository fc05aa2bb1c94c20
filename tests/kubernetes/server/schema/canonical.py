"""The one form in which the API server serves Kubernetes' own kinds: no empty fields, and one text of each quantity."""

import re
from decimal import Decimal
from typing import Any

from lightkube.utils.quantity import parse_quantity

from tests.kubernetes.server.errors import bad_request
from tests.kubernetes.server.schema.schema import Json, Schema

POWER_OF_TWO, POWER_OF_TEN = 1024, 1000
BINARY = ("", "Ki", "Mi", "Gi", "Ti", "Pi", "Ei")
DECIMAL = ("n", "u", "m", "", "k", "M", "G", "T", "P", "E")
EXPONENT = re.compile(r"[eE][+-]?\d")
SMALLEST = Decimal("1e-9")
KEPT = frozenset({"storageClassName"})
"""Fields for which an empty text means something else than none."""


def canonical(value: Any, schema: Schema) -> Any:
    """Return a value as it is served. ApiFailure 400 if a quantity is none."""
    if schema.is_quantity and value is not None:
        return quantity_text(str(value))
    if isinstance(value, list):
        return [canonical(each, schema.items) for each in value]
    if not isinstance(value, dict):
        return value
    served = {name: canonical(each, schema.field(name)) for name, each in value.items()}
    return {name: each for name, each in served.items() if each or not _is_left_out(name, each, schema)}


def counts(schema: Schema) -> Json:
    """Return the counts that an object has even if nothing was counted."""
    return {name: 0 for name in sorted(schema.required) if "integer" in schema.field(name).types}


def _is_left_out(name: str, value: Any, schema: Schema) -> bool:
    """Return whether an empty value stands for an absent field."""
    if not schema.declares(name) or name in schema.required or name in KEPT:
        return False
    field = schema.field(name)
    return field.is_map if value == {} else (value == "" and "string" in field.types) or value == []


def quantity_text(text: str) -> str:
    """Return the shortest text of a quantity without a fraction, with suffixes as given; one with an exponent stays."""
    try:
        amount = parse_quantity(text) or Decimal()
    except ValueError as error:
        raise bad_request(f"{text!r} is no quantity") from error
    if EXPONENT.search(text):
        return text
    is_binary = text.endswith("i") and amount == int(amount) and abs(amount) >= POWER_OF_TWO
    found = _scaled(amount, POWER_OF_TWO, BINARY) if is_binary else _scaled(amount / SMALLEST, POWER_OF_TEN, DECIMAL)
    return found if amount else "0"


def _scaled(amount: Decimal, base: int, suffixes: tuple[str, ...]) -> str:
    number, steps = int(amount.to_integral_value()), 0
    while number and number % base == 0 and steps < len(suffixes) - 1:
        number, steps = number // base, steps + 1
    return f"{number}{suffixes[steps]}"
