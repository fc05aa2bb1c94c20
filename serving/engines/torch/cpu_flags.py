"""Features of this machine's processor, by the kernel's names. Read when a library is built or loaded."""

import re
from pathlib import Path
from typing import Final

CPU_FILE: Final = Path("/proc/cpuinfo")
_LINE = re.compile(r"^(?:flags|Features)\s*:(.*)$", re.MULTILINE)


def machine_flags(path: Path = CPU_FILE) -> frozenset[str]:
    """Return the flags of the first core, such as `avx512f`; empty if the machine has no such file."""
    try:
        found = _LINE.search(path.read_text())
    except OSError:
        return frozenset()
    return frozenset(found[1].split()) if found else frozenset()
