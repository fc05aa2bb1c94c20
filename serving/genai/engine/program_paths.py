"""Paths that an engine's program is read from: files that its command names, and the Python environments among them."""

import shlex
import shutil
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Final

from serving.genai.command_line.interpreter import COMMAND_VARIABLE, vllm_python

_SETTINGS_OF_AN_ENVIRONMENT: Final = "pyvenv.cfg"


def program_words(environment: Mapping[str, str]) -> Sequence[str]:
    """Return the words of an engine's command that the operator gave, none from a manifest.

    LoadFailed if there is no vLLM.
    """
    template = environment.get(COMMAND_VARIABLE)
    if not template:
        return (vllm_python(environment),)
    return [word.replace("{python}", sys.executable) for word in shlex.split(template)]


def program_paths(words: Sequence[str], *, search: str | None = None) -> frozenset[Path]:
    """Return the absolute paths that these words name, and those that belong to them. `search` is the variable PATH.

    To a program in `bin` of a Python environment belong this environment, its base environment, and the directories
    that its `.pth` files add to the module path.
    """
    named = [shutil.which(words[0], path=search), *words[1:]] if words else []
    return frozenset(path for word in named if word for path in _belonging(word.rpartition("=")[2]))


def _belonging(word: str) -> Iterator[Path]:
    path = Path(word)
    if not path.is_absolute() or not path.exists():
        return
    for one in (path, path.resolve()):
        yield one
        if one.parent.name == "bin":
            yield from _environment(one.parent.parent)


def _environment(prefix: Path) -> Iterator[Path]:
    settings = prefix / _SETTINGS_OF_AN_ENVIRONMENT
    if settings.is_file():
        yield prefix
        yield from _list_added(prefix)
        for line in settings.read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition("=")
            if name.strip() == "home":
                yield from _environment(Path(value.strip()).resolve().parent)
    elif any(prefix.glob("lib/python3*")) or (prefix / "conda-meta").is_dir():
        yield prefix


def _list_added(prefix: Path) -> Iterator[Path]:
    """Yield directories outside an environment that its `.pth` files add, as `site` reads them."""
    for file in prefix.glob("lib/python3*/site-packages/*.pth"):
        for line in file.read_text(encoding="utf-8", errors="replace").splitlines():
            path = file.parent / line.strip()
            if line.strip() and not line.startswith(("#", "import ", "import\t")) and path.is_dir():
                yield path
