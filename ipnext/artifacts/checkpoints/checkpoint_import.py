"""Makes a snapshot of a checkpoint directory.

The files that serving needs, hashed, and a `snapshot.json` with its facts.
"""

import os
import shutil
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Final

from ipnext import __version__
from ipnext.artifacts.checkpoints.checkpoint_fit import misfits
from ipnext.artifacts.checkpoints.reader import WEIGHTS_SUFFIX, LocalFiles, ReadCheckpoint, read_checkpoint
from ipnext.artifacts.hashing import hash_stream
from ipnext.artifacts.layout import CHUNK_BYTES, manifest_bytes
from ipnext.errors import InvalidInput
from ipnext.model.manifest.derived.part_tensors import embedding_signature, text_spec
from ipnext.model.registry.checkpoint import Checkpoint
from ipnext.model.registry.registry import OWN_FILES, SNAPSHOT_FILE, ArtifactFile, Signature, SnapshotManifest
from ipnext.model.settings.prompt import PROMPT

ENGINE: Final = "vllm"
DATA_SUFFIXES: Final = (".json", ".txt", ".model", ".tiktoken", ".jinja")
"""Files that a model needs besides its weights: configuration, tokenizer, chat template. All of it is data."""


@dataclass(frozen=True)
class ImportedCheckpoint:
    """A snapshot made of a checkpoint."""

    manifest: SnapshotManifest
    left_out: Sequence[str]
    """Files of the directory that are not in the snapshot."""


def describe_checkpoint(directory: Path, *, parent: str | None = None) -> ImportedCheckpoint:
    """Return the manifest of a checkpoint directory; write nothing.

    InvalidInput names the file or tensor if it is incomplete, PathNotAllowed the links that lead out of the directory.
    The same files give the same digest.
    """
    return _describe(directory, LocalFiles(_check_directory(directory)), parent)


def _describe(directory: Path, files: LocalFiles, parent: str | None) -> ImportedCheckpoint:
    try:
        checkpoint = read_checkpoint(files)
    except InvalidInput as error:
        raise _fault(directory, error.message) from error
    fault = next(misfits(checkpoint), None)
    if fault is not None:
        raise _fault(directory, fault)
    chosen = [path for path in files.sizes if _belongs(path, checkpoint)]
    manifest = SnapshotManifest(
        engine=ENGINE,
        signature=_signature(checkpoint.facts),
        files=tuple(_file(files, path) for path in chosen),
        producer={"ipnext": __version__},
        parent=parent,
        checkpoint=checkpoint.facts,
    )
    return ImportedCheckpoint(manifest, tuple(sorted(files.sizes.keys() - set(chosen))))


def import_checkpoint(
    directory: Path, out: Path, *, link: bool = False, parent: str | None = None
) -> ImportedCheckpoint:
    """Write a snapshot of a checkpoint into `out`, which must be missing or empty. `link`: hard links if possible."""
    if out.exists() and (not out.is_dir() or any(out.iterdir())):
        msg = f"out: {str(out)!r} must not exist or be an empty directory; a snapshot is never overwritten"
        raise InvalidInput(msg, field="out", value=str(out))
    files = LocalFiles(_check_directory(directory))
    imported = _describe(directory, files, parent)
    out.parent.mkdir(parents=True, exist_ok=True)
    draft = Path(tempfile.mkdtemp(prefix=f".{out.name}.", dir=out.parent))
    try:
        for file in imported.manifest.files:
            _bring(files, file.path, draft / file.path, link=link)
        with (draft / SNAPSHOT_FILE).open("wb") as stream:
            stream.write(manifest_bytes(imported.manifest))
            stream.flush()
            os.fsync(stream.fileno())
        draft.chmod(0o755)
        draft.rename(out)
    finally:
        shutil.rmtree(draft, ignore_errors=True)
    return imported


def _fault(directory: Path, message: str) -> InvalidInput:
    return InvalidInput(f"{directory}: {message}", field="directory", value=str(directory))


def _check_directory(directory: Path) -> Path:
    if not directory.is_dir():
        msg = f"directory: {str(directory)!r} is no directory; it is what transformers' save_pretrained has written"
        raise InvalidInput(msg, field="directory", value=str(directory))
    return directory


def _belongs(path: str, checkpoint: ReadCheckpoint) -> bool:
    """Return whether the snapshot gets this file: the model's weights, and data.

    Hidden files and those of other programs are left out.
    """
    if path.endswith(WEIGHTS_SUFFIX):
        return path in checkpoint.weights
    hidden = any(step.startswith(".") for step in path.split("/"))
    return not hidden and path not in OWN_FILES and PurePosixPath(path).suffix in DATA_SUFFIXES


def _signature(facts: Checkpoint) -> Signature:
    """Return the signature by convention: the input is a text; the output is a text or a vector."""
    if facts.embeds:
        return embedding_signature(facts.hidden_size)
    return Signature(inputs=(text_spec(PROMPT),), outputs=(text_spec("text"),))


def _file(files: LocalFiles, path: str) -> ArtifactFile:
    with files.open(path) as stream:
        sha256, size_bytes = hash_stream(stream)
    return ArtifactFile(path=path, sha256=sha256, size_bytes=size_bytes)


def _bring(files: LocalFiles, path: str, target: Path, *, link: bool) -> None:
    """Copy or link a file; a link of the checkpoint becomes the file that it was judged to lead to."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with files.open(path) as stream:
        if link:
            descriptor = stream.fileno()
            with suppress(OSError):  # another file system
                # `src_dir_fd`, which an absolute path doesn't use, makes Python follow the link of /proc
                os.link(f"/proc/self/fd/{descriptor}", target, src_dir_fd=descriptor)
                return
        with target.open("xb") as copy:
            shutil.copyfileobj(stream, copy, CHUNK_BYTES)
