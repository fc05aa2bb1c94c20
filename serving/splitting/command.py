"""`ipnext split`: cut a snapshot into parts by a policy. Mounted through the entry point `ipnext.commands`.

Exit status: 0 done and equal, 1 a comparison that found a difference, 2 a policy or snapshot that does not fit.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ipnext.cli.output import Form, Output, rows, write
from ipnext.errors import EXIT_FAILURE
from serving.splitting.diagram import svg, tree
from serving.splitting.policy import read_policy
from serving.splitting.report import SplitReport

app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]}, rich_markup_mode=None, pretty_exceptions_enable=False
)


@app.command()
def split(  # noqa: PLR0913 - one for each option
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="A snapshot, as export_model writes it.")],
    policy: Annotated[Path, typer.Option("--policy", metavar="FILE", help="YAML: spec.split, or a manifest with one.")],
    *,
    verify: Annotated[
        bool, typer.Option("--verify", help="Run both and compare every bit; exit status 1 if not.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Write a snapshot for each segment here, if all is equal.")] = None,
    examples: Annotated[Path | None, typer.Option(help="A safetensors file of inputs to compare with.")] = None,
    picture: Annotated[Path | None, typer.Option(metavar="FILE.svg", help="Draw the graph.")] = None,
    output: Output = Form.TABLE,
) -> None:
    """Cut a snapshot into parts by a policy, and show them."""
    from serving.splitting.split import split_snapshot  # noqa: PLC0415 - torch takes a second

    report = split_snapshot(directory, read_policy(policy), out=out, verify=verify, examples=examples)
    if picture is not None:
        picture.write_text(svg(report), encoding="utf-8")
    write(report, output, lambda: _tables(report))
    if not report.is_equal:
        typer.echo("error: the split differs from the snapshot; nothing was written", err=True)
        raise typer.Exit(EXIT_FAILURE)


def _tables(report: SplitReport) -> Iterator[Table | str]:
    lines = (
        (p.name, f"{p.bytes:,}", _hardware(p.hardware), " ".join(p.segments), " ".join(p.modules)) for p in report.parts
    )
    yield rows("", ("part", "bytes", "hardware", "segments", "modules"), lines)
    yield ""
    yield rows("", ("segment", "stage", "bytes", "takes", "gives"), _segment_lines(report))
    yield ""
    yield tree(report)
    for tensor in report.tensors:
        if tensor.carries:
            yield f"packed: {tensor.name} carries {' '.join(tensor.carries)}"
    for copy in report.copied:
        yield f"copied: {copy.weight} ({copy.bytes:,} bytes) into {', '.join(copy.segments)}"
    for batch, same in report.bit_equal.items():
        yield f"batch {batch}: {'equal in every bit' if same else 'DIFFERS'}"
    yield from report.differences


def _segment_lines(report: SplitReport) -> Iterator[tuple[str, ...]]:
    for segment in report.segments:
        takes, gives = " ".join(segment.inputs), " ".join(segment.outputs)
        yield segment.name, str(segment.stage), f"{segment.bytes:,}", takes, gives


def _hardware(kinds: object) -> str:
    if not isinstance(kinds, tuple):
        return ""
    return " ".join(kind if isinstance(kind, str) else kind.kind for kind in kinds)
