"""Kinds of processors to compile for, and what each must be able to do.

Names and contents are those of the x86-64 psABI (microarchitecture levels); flags are named as the Linux kernel does.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from ipnext.errors import InvalidInput

NATIVE: Final = "native"
"""Where there is no level that fits: for processors that have every flag of this machine."""

_V3: Final = (
    "abm", "avx", "avx2", "bmi1", "bmi2", "cx16", "f16c", "fma", "lahf_lm", "movbe", "pni", "popcnt", "sse4_1",
    "sse4_2", "ssse3", "xsave",
)  # fmt: skip
_V4: Final = (*_V3, "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")
LEVELS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType({"x86-64-v4": _V4, "x86-64-v3": _V3})
"""From the highest to the lowest."""


def level_for(flags: frozenset[str], wanted: str | None) -> str:
    """The level to compile for on a machine of these flags: the wanted one, else the highest that it has.

    InvalidInput for a level that the machine lacks: what is compiled is also tried here.
    """
    own = next((name for name, needed in LEVELS.items() if flags.issuperset(needed)), NATIVE)
    if wanted is None:
        return own
    if wanted != NATIVE and wanted not in LEVELS:
        allowed = (*LEVELS, NATIVE)
        msg = f"cpu: {wanted!r} is no level; allowed: {', '.join(allowed)}"
        raise InvalidInput(msg, field="cpu", value=wanted, allowed=allowed)
    missing = [flag for flag in LEVELS.get(wanted, ()) if flag not in flags]
    if missing:
        msg = f"cpu: {wanted!r} needs {', '.join(missing)}, which this machine lacks; compile on one that has it"
        raise InvalidInput(msg, field="cpu", value=wanted)
    return wanted


def needed_flags(level: str, machine: frozenset[str]) -> tuple[str, ...]:
    """What a processor must have to run what was compiled for `level` on a machine of flags `machine`."""
    return LEVELS.get(level, tuple(sorted(machine)))
