"""Cache of the libraries built on this machine, by their recipe: the same program is compiled once.

The key covers the program and its sizes, not the weights, so a retrained snapshot reuses the library of the former one.
"""

import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

import torch
from platformdirs import user_cache_path

import ipnext
import serving
from ipnext import __version__
from ipnext.errors import UnsupportedModel
from ipnext.model.value import digest_of
from ipnext.names import LIBRARY_FILE
from serving.engines.torch.compiled import CALLS_FILE
from serving.snapshots.directory import half_written

LONGEST_SECONDS: Final = 3600
"""Time limit of a compilation."""
_FILES: Final = (LIBRARY_FILE, CALLS_FILE)


@dataclass(frozen=True, slots=True)
class Recipe:
    """All inputs that determine a library: equal recipes give equal libraries."""

    program: str
    """SHA-256 of `program.json`."""
    level: str
    flags: tuple[str, ...]
    torch: str
    compiler: str

    @property
    def key(self) -> str:
        """Name of the library in the cache."""
        return digest_of({name: getattr(self, name) for name in self.__slots__} | {"ipnext": __version__})


def default_cache() -> Path:
    """Return the library cache of this user."""
    return user_cache_path("ipnext") / "compiled"


def build_library(recipe: Recipe, snapshot: Path, cache: Path) -> tuple[Path, bool]:
    """Return the library's directory, and whether it was cached. UnsupportedModel if the program cannot be compiled."""
    place = cache / recipe.key
    if (place / LIBRARY_FILE).is_file():
        return place, True
    cache.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        with half_written(place) as draft, tempfile.TemporaryDirectory(prefix="ipnext-compile-") as scratch:
            _compile(snapshot, Path(scratch), recipe.level)
            for name in _FILES:
                if (Path(scratch) / name).exists():
                    shutil.copyfile(Path(scratch) / name, draft / name)
    except OSError:
        if not (place / LIBRARY_FILE).is_file():  # else another process was faster
            raise
    return place, False


def _compile(snapshot: Path, out: Path, level: str) -> None:
    command = [sys.executable, "-m", "serving.compiling.worker", str(snapshot), str(out), level]
    try:
        done = subprocess.run(  # noqa: S603  # our own module
            command, env=_environment(out), capture_output=True, text=True, timeout=LONGEST_SECONDS, check=False
        )
    except subprocess.TimeoutExpired as error:
        msg = f"the program was not compiled within {LONGEST_SECONDS} seconds"
        raise UnsupportedModel(msg) from error
    if done.returncode or not (out / LIBRARY_FILE).is_file():
        msg = f"the program cannot be compiled: {_reason(done)}"
        raise UnsupportedModel(msg)


def _environment(out: Path) -> Mapping[str, str]:
    """Return the environment of the compiling process, which finds our packages in `out`.

    A confined process may read them, but not the directory that they lie in, if that is a checkout.
    """
    code = out / "code"
    code.mkdir()
    for package in (ipnext, serving):
        (code / package.__name__).symlink_to(Path(package.__path__[0]).resolve())
    path = os.pathsep.join([str(code), *filter(None, [os.environ.get("PYTHONPATH")])])
    own = {"PYTHONPATH": path, "TORCHINDUCTOR_CACHE_DIR": str(out / "inductor"), "OMP_NUM_THREADS": "1"}
    return {**os.environ, **own}


def _reason(done: subprocess.CompletedProcess[str]) -> str:
    lines = [line.removeprefix("error: ") for line in done.stderr.splitlines() if line.strip()]
    return lines[-1] if lines else f"the compiler's process ended with status {done.returncode}"


def torch_version() -> str:
    """Return torch's version, as in recipes and `compiled.json`."""
    return str(torch.__version__)
