"""`ipnext compile`: make a compiled snapshot of a snapshot. Mounted through the entry point `ipnext.commands`.

Exit status: 0 written, 1 answers that differ by more than the tolerance, 2 a snapshot or machine that does not fit.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

import typer
from rich.table import Table

from ipnext.cli.output import Form, Output, rows, write
from ipnext.errors import EXIT_FAILURE
from serving.compiling.report import CompileReport

app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]}, rich_markup_mode=None, pretty_exceptions_enable=False
)


@app.command(name="compile")
def compile_command(  # noqa: PLR0913 - one for each option
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="A snapshot, as export_model writes it.")],
    out: Annotated[Path, typer.Option("--out", metavar="DIR", help="Where the compiled snapshot is written.")],
    *,
    tolerance: Annotated[
        float,
        typer.Option(help="The largest difference from eager answers, in relation to an output's largest figure."),
    ] = 1e-5,
    cpu: Annotated[str | None, typer.Option(help="x86-64-v3, x86-64-v4 or native; default: this machine's.")] = None,
    examples: Annotated[Path | None, typer.Option(help="A safetensors file of inputs to compare with.")] = None,
    cache: Annotated[Path | None, typer.Option(help="Where libraries are kept for the next snapshot.")] = None,
    output: Output = Form.TABLE,
) -> None:
    """Compile a snapshot's program to a native library, and measure how its answers differ."""
    from serving.compiling.compile import compile_snapshot  # noqa: PLC0415 - torch takes a second

    report = compile_snapshot(directory, out, tolerance=tolerance, cpu=cpu, examples=examples, cache=cache)
    write(report, output, lambda: _tables(report))
    if not report.is_within:
        typer.echo(f"error: answers differ by more than the tolerance {tolerance:g}; nothing was written", err=True)
        raise typer.Exit(EXIT_FAILURE)


def _tables(report: CompileReport) -> Iterator[Table | str]:
    how = "known, nothing was compiled" if report.library_known else f"compiled in {report.seconds:.0f} s"
    yield f"library: {report.library_bytes:,} bytes for {report.level}, {how}"
    lines = ((str(d.batch), f"{d.absolute:.1e}", f"{d.relative:.1e}") for d in report.differences)
    yield rows("", ("batch", "absolute", "relative"), lines)
