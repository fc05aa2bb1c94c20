"""A directory of a snapshot: hashed files, the manifest last, nothing half-written. Used by export and split."""

import hashlib
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Final

from ipnext.errors import InvalidInput
from ipnext.model.registry import ArtifactFile

_CHUNK: Final = 2**20


def checked_directory(directory: Path) -> Path:
    """The directory, which must not exist or be empty; else InvalidInput."""
    if directory.exists() and (not directory.is_dir() or any(directory.iterdir())):
        msg = f"directory: {str(directory)!r} must not exist or be an empty directory; a snapshot is never overwritten"
        raise InvalidInput(msg, field="directory", value=str(directory))
    return directory


@contextmanager
def half_written(target: Path) -> Iterator[Path]:
    """A directory beside `target` that takes its name at the end, or vanishes."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
    try:
        yield draft
        draft.chmod(0o755)
        draft.rename(target)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


def artifact_file(path: Path) -> ArtifactFile:
    """A written file as the manifest lists it; its bytes are on the disk when this returns."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while chunk := stream.read(_CHUNK):
            digest.update(chunk)
        os.fsync(stream.fileno())
    return ArtifactFile(path=path.name, sha256=digest.hexdigest(), size_bytes=path.stat().st_size)


def write_last(path: Path, text: str) -> None:
    """Write the file that makes a directory a snapshot."""
    with path.open("w") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
