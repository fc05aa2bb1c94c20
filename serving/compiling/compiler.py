"""The C++ compiler that torch calls. Imports nothing heavy: a worker asks for its version."""

import os
import shutil
import subprocess

from ipnext.errors import InvalidInput


def compiler_version() -> str:
    """Return the version line of the C++ compiler that torch would use. InvalidInput if there is none."""
    name = os.environ.get("CXX", "g++")
    found = shutil.which(name)
    if found is None:
        msg = f"compiler: {name!r} is not installed; install gcc and g++, or name another in the variable CXX"
        raise InvalidInput(msg, field="compiler", value=name)
    done = subprocess.run([found, "--version"], capture_output=True, text=True, check=False)  # noqa: S603  # the user's own compiler
    return done.stdout.partition("\n")[0].strip() or name
