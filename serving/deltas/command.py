"""`ipnext delta`: the difference of two snapshots as a delta snapshot, and back. Entry point `ipnext.commands`.

Exit status: 0 done, 1 or 2 for snapshots that do not go together, or a delta that gives another result than it states.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from ipnext.cli.output import Form, Output, rows, write
from ipnext.model.registry.registry import SnapshotManifest

if TYPE_CHECKING:
    from serving.deltas.report import DeltaReport

app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]}, rich_markup_mode=None, pretty_exceptions_enable=False
)


@app.command()
def delta(
    parent: Annotated[Path, typer.Argument(metavar="PARENT", help="Directory of the snapshot that changes.")],
    new: Annotated[Path, typer.Argument(metavar="NEW", help="Directory of the changed one; with --apply of a delta.")],
    *,
    out: Annotated[
        Path, typer.Option(metavar="DIR", help="Where the snapshot is written; must not exist or be empty.")
    ],
    base: Annotated[
        list[Path] | None, typer.Option(metavar="DIR", help="Where PARENT is a delta: a snapshot below it. Repeatable.")
    ] = None,
    apply: Annotated[bool, typer.Option("--apply", help="Write the full snapshot that PARENT with NEW is.")] = False,
    output: Output = Form.TABLE,
) -> None:
    """Write what differs between two snapshots of one program as a delta snapshot."""
    bases = tuple(base or ())
    if apply:
        from serving.deltas.apply import apply_delta  # noqa: PLC0415 - torch takes a second

        manifest = apply_delta(parent, new, out, bases=bases)
        write(manifest, output, lambda: _render_result(out, manifest))
        return
    from serving.deltas.export import write_difference  # noqa: PLC0415 - torch takes a second
    from serving.deltas.lineage import open_snapshot  # noqa: PLC0415 - as above
    from serving.deltas.report import report_of  # noqa: PLC0415 - as above

    ground = open_snapshot(parent, bases)
    report = report_of(out, write_difference(ground, new, out), ground)
    write(report, output, lambda: _tables(report))


def _render_result(out: Path, manifest: SnapshotManifest) -> Table:
    line = (str(out), f"{manifest.size_bytes:,}", manifest.digest)
    return rows("", ("snapshot", "bytes", "digest"), [line])


def _tables(report: "DeltaReport") -> Iterator[Table | str]:
    lines = ((c.tensor, f"{c.rows:,}", f"{c.of:,}", c.row_digest) for c in report.tensors)
    yield rows("", ("tensor", "rows", "of", "row digest"), lines)
    yield ""
    yield (
        f"{report.rows:,} rows, {report.bytes:,} bytes: {report.ratio:.4f} of the full snapshot's {report.full_bytes:,}"
    )
    yield f"digest {report.digest}"
    yield f"parent {report.parent}"
