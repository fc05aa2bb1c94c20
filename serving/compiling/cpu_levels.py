"""Processor levels to compile for, and the features that each requires.

Names and contents are those of the x86-64 psABI (microarchitecture levels); flags have the Linux kernel's names.
"""

from collections.abc import Mapping
from types import MappingProxyType
from typing import Final

from ipnext.errors import InvalidInput

NATIVE: Final = "native"
"""Level if no other fits: for processors that have every flag of this machine."""

_V3: Final = (
    "abm", "avx", "avx2", "bmi1", "bmi2", "cx16", "f16c", "fma", "lahf_lm", "movbe", "pni", "popcnt", "sse4_1",
    "sse4_2", "ssse3", "xsave",
)  # fmt: skip
_V4: Final = (*_V3, "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")
LEVELS: Final[Mapping[str, tuple[str, ...]]] = MappingProxyType({"x86-64-v4": _V4, "x86-64-v3": _V3})
"""From the highest to the lowest."""


def level_for(flags: frozenset[str], wanted: str | None) -> str:
    """Return the level to compile for on a machine with these flags: the wanted one, else the highest that it has.

    InvalidInput if the machine lacks the level, because the library is also tested here.
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
    """Return the flags required to run a library compiled for `level` on a machine with flags `machine`."""
    return LEVELS.get(level, tuple(sorted(machine)))
