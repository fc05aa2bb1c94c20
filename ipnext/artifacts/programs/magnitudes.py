"""Limit of the whole numbers that a program computes from sizes. Used by ipnext.artifacts.programs.schema.

Sizes are Python's integers, which grow without limit: thirty products of a number with itself take gigabytes, and the
interpreter is blocked while it computes one.
"""

from collections.abc import Mapping, Sequence
from typing import Any, Final

from ipnext.artifacts.programs.forms import UnsafeProgram
from ipnext.artifacts.programs.operators import SIZES

MOST_BITS: Final = 4096
"""Most bits of a number that a program may compute."""
_SIZE_BITS: Final = 64
_FLOAT_BITS: Final = 1024
"""Bits of the whole part of a floating-point number."""
_FROM_FLOATS: Final = frozenset({"math.trunc", "torch.sym_int", "_operator.floordiv"})


def check_magnitudes(nodes: Sequence[Mapping[str, Any]]) -> None:
    """Raise UnsafeProgram if a number may take more than MOST_BITS. The form of `nodes` must be checked before."""
    bits: dict[str, int] = {}
    for node in nodes:
        if node["target"] not in SIZES:
            continue
        found = _bits(node["target"], [_bits_of(item["arg"], bits) for item in node["inputs"]])
        if found > MOST_BITS:
            msg = f"the size that {node['target']} computes may take {found} bits; allowed: at most {MOST_BITS}"
            problem = UnsafeProgram(msg)
            problem.within(f" (node {node.get('name')!r})")
            raise problem
        for name in filter(None, map(_name_of, (*node["outputs"], {"as_sym_int": {"as_name": node.get("name")}}))):
            bits[name] = max(found, bits.get(name, 0))


def _bits(target: str, given: Sequence[int]) -> int:
    if target == "_operator.mul":
        return sum(given)
    return max((_FLOAT_BITS if target in _FROM_FLOATS else 0, *given)) + 1


def _bits_of(argument: Mapping[str, Any], bits: Mapping[str, int]) -> int:
    name = _name_of(argument)
    return _SIZE_BITS if name is None else bits.get(name, _SIZE_BITS)


def _name_of(argument: Mapping[str, Any]) -> str | None:
    """Return the number or tensor that an argument names."""
    [value] = argument.values()
    if not isinstance(value, dict):
        return None
    name = value.get("as_name", value.get("name"))
    return name if isinstance(name, str) else None
