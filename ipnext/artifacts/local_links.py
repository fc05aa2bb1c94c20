"""Symbolic links in a directory to publish or to import: they are judged before any file is read.

A link may lead to a file of the directory, or of the Hugging Face cache that the directory is in: its snapshots hold
links to `blobs` of the same model. Elsewhere it would copy any file of this machine into a snapshot.
"""

import os
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Final

from ipnext.artifacts.sources import DirectorySource
from ipnext.errors import PathNotAllowed

_CACHE: Final = "models--"
"""Beginning of the name of a model's folder in Hugging Face's cache, with `blobs` and `snapshots/REVISION`."""
_SNAPSHOTS: Final = "snapshots"
_NAMED: Final = 10
"""Links that an error names."""


def open_directory(directory: Path) -> DirectorySource:
    """Return the files of a directory of this user.

    Raises:
        InvalidInput: it is no directory.
        PathNotAllowed: links in it lead elsewhere; each is named with the directory of its target.
    """
    root = _root_of(directory)
    source = DirectorySource(directory, roots=(root,))
    leaving = sorted(_leaving(directory, root))
    if leaving:
        shown = ", ".join(f"{link!r} to {str(target)!r}" for link, target in leaving[:_NAMED])
        more = f" and {len(leaving) - _NAMED} more" if len(leaving) > _NAMED else ""
        msg = (
            f"{directory}: links lead out of it: {shown}{more}; allowed: links within {root}. "
            f"Remove them, or copy what they lead to with `cp -RL {directory} NEW_DIRECTORY`, and use the copy"
        )
        raise PathNotAllowed(msg, field="directory", value=str(directory), allowed=(str(root),))
    return source


def _root_of(directory: Path) -> Path:
    """Return the directory that links may not leave."""
    resolved = directory.resolve()
    for folder in resolved.parents:
        if folder.name.startswith(_CACHE) and resolved.relative_to(folder).parts[0] == _SNAPSHOTS:
            return folder
    return resolved


def _leaving(directory: Path, root: Path) -> Iterator[tuple[str, Path]]:
    """Yield the links that lead out of `root`, with the directories of their targets."""
    for within, folders, files in os.walk(directory):
        for link in (path for name in (*folders, *files) if (path := Path(within) / name).is_symlink()):
            with suppress(OSError, RuntimeError):  # a circle leads nowhere
                target = link.resolve()
                if not target.is_relative_to(root):
                    yield link.relative_to(directory).as_posix(), target.parent
