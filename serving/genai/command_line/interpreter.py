"""Search for the interpreter with vLLM: a separate virtual environment, since its pins differ from the platform's."""

import os
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Final

from ipnext.errors import LoadFailed

PYTHON_VARIABLE: Final = "IPNEXT_VLLM_PYTHON"
"""Environment variable: the interpreter with vLLM."""
COMMAND_VARIABLE: Final = "IPNEXT_VLLM_COMMAND"
"""Environment variable: command to run instead of vLLM, a shell-like line with the fields of
`serving.genai.command_line.vllm_command`."""
MISSING: Final = (
    "vLLM is not installed: run `make setup-genai`, or let IPNEXT_VLLM_PYTHON name an interpreter that has it"
)


def vllm_python(environment: Mapping[str, str] = os.environ, *, prefix: str = sys.prefix) -> str:
    """Return the interpreter's path: the setting, else `<virtual environment>-genai`, else this one.

    LoadFailed if none has vLLM.
    """
    given = environment.get(PYTHON_VARIABLE)
    if given:
        if not os.access(given, os.X_OK):
            msg = f"{PYTHON_VARIABLE}: {given!r} is no program; it names the interpreter that has vLLM"
            raise LoadFailed(msg)
        return given
    beside = Path(f"{prefix}-genai") / "bin" / "python"
    if os.access(beside, os.X_OK):
        return str(beside)
    if find_spec("vllm") is not None:
        return sys.executable
    raise LoadFailed(MISSING)
