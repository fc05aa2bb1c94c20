"""A fork of a program with an environment and a limit of files of its own: see `tests.forked_programs`.

    python -m tests.with_environment FILE MODULE ARGUMENT...

FILE has both as JSON; it is removed.
"""

import json
import os
import resource
import sys
from collections.abc import Sequence
from importlib import import_module
from pathlib import Path
from typing import Any


def main(arguments: Sequence[str]) -> Any:
    """Run the program of a module with these arguments; its exit status."""
    name, module, *given = arguments
    file = Path(name)
    wanted = json.loads(file.read_text())
    file.unlink()
    os.environ.clear()
    os.environ.update(wanted["environment"])
    if wanted["files"] is not None:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted["files"], wanted["files"]))
    sys.argv[1:] = given
    program = import_module(module)
    return (import_module(f"{module}.__main__") if hasattr(program, "__path__") else program).main()
