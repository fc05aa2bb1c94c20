"""The command that makes snapshots of checkpoints. It speaks to no server."""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ipnext.cli.command import Command
from ipnext.cli.output import Form, Output, rows, say, write
from ipnext.model.registry.registry import SnapshotManifest
from ipnext.model.value import Sha256, Value


class ImportReport(Value):
    """Answer of `ipnext import-checkpoint`."""

    digest: Sha256
    manifest: SnapshotManifest
    left_out: tuple[str, ...]
    """Files of the checkpoint's directory that are not in the snapshot."""


def import_checkpoint(
    directory: Annotated[
        Path, typer.Argument(metavar="HF_DIR", help="As transformers' or PEFT's save_pretrained wrote it.")
    ],
    out: Annotated[Path, typer.Argument(metavar="OUT_DIR", help="Where the snapshot is written.")],
    link: Annotated[bool, typer.Option("--link", help="Hard links instead of copies, if possible.")] = False,
    parent: Annotated[str | None, typer.Option(help="Digest of the snapshot that it was trained on from.")] = None,
    output: Output = Form.TABLE,
) -> None:
    """Make a snapshot for vLLM of a checkpoint: safetensors only, its headers checked against config.json."""
    from ipnext.artifacts.checkpoints.checkpoint_import import (  # noqa: PLC0415 - only this command needs it
        import_checkpoint as make,
    )

    imported = make(directory, out, link=link, parent=parent)
    if imported.left_out:
        say(f"left out: {', '.join(imported.left_out)}")
    report = ImportReport(
        digest=imported.manifest.digest, manifest=imported.manifest, left_out=tuple(imported.left_out)
    )
    write(report, output, lambda: _table(report))


def _table(report: ImportReport) -> Iterator[Table | str]:
    facts = report.manifest.checkpoint
    yield f"snapshot {report.digest:.16}: {len(report.manifest.files)} files, {report.manifest.size_bytes:,} bytes"
    if facts is not None:
        told = facts.model_dump(exclude_none=True, exclude={"tensors"})
        yield rows("", ("fact", "value"), [(name, str(value)) for name, value in told.items()])


COMMANDS = (Command("import-checkpoint", "Make a snapshot for vLLM of a checkpoint.", import_checkpoint),)
