"""`ipnext optimize`: run an optimization pipeline on a snapshot. Mounted through the entry point `ipnext.commands`.

Exit status: 0 done, 1 a limit that was broken, 2 a step or snapshot that does not fit.
"""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
import yaml
from pydantic import ValidationError
from rich.table import Table

from ipnext.cli.output import Form, Output, rows, write
from ipnext.errors import EXIT_FAILURE, InvalidInput
from ipnext.model.manifest.optimization import OptimizationStep
from ipnext.model.registry.optimization import AccuracyReport, Measured
from ipnext.model.validation_errors import invalid_input

if TYPE_CHECKING:
    from serving.optimizing.derive import PipelineReport

app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]}, rich_markup_mode=None, pretty_exceptions_enable=False
)


@app.command()
def optimize(
    directory: Annotated[Path, typer.Argument(metavar="DIRECTORY", help="A snapshot, as export_model writes it.")],
    steps: Annotated[
        list[str], typer.Option("--step", metavar="YAML", help="A step as in spec.optimization; repeatable, in order.")
    ],
    *,
    hardware: Annotated[
        str | None,
        typer.Option(metavar="KIND", help="Leave out steps for other hardware kinds than this one."),
    ] = None,
    replay: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Requests and labels; default: the snapshot's, else drawn ones.")
    ] = None,
    out: Annotated[Path | None, typer.Option(metavar="DIR", help="Where the derived snapshot is written.")] = None,
    output: Output = Form.TABLE,
) -> None:
    """Derive a snapshot by an optimization pipeline, and report what it differs in."""
    from serving.optimizing.derive import optimize_snapshot  # noqa: PLC0415 - torch takes a second

    report = optimize_snapshot(directory, choose_steps(parse_steps(steps), hardware), out, replay=replay)
    write(report, output, lambda: _tables(report))
    if report.refused:
        broken = "; ".join(report.steps[-1].broken)
        typer.echo(f"error: {report.steps[-1].kind}: {broken}; nothing was written", err=True)
        raise typer.Exit(EXIT_FAILURE)


def parse_steps(texts: Sequence[str]) -> tuple[OptimizationStep, ...]:
    """Parse steps, each as in `spec.optimization`. InvalidInput."""
    return tuple(_parse(number, text) for number, text in enumerate(texts))


def choose_steps(steps: Sequence[OptimizationStep], hardware: str | None) -> tuple[OptimizationStep, ...]:
    """Return the steps that take effect on a hardware kind.

    InvalidInput if none does, or if steps name kinds and none is given.
    """
    named = sorted({kind for step in steps for kind in step.spec.hardware or ()})
    if hardware is None and named:
        msg = f"--hardware: has to be given, since steps name hardware kinds; allowed: {', '.join(named)}, or another"
        raise InvalidInput(msg, field="hardware", allowed=named)
    chosen = tuple(step for step in steps if hardware is None or step.takes(hardware))
    if not chosen:
        msg = f"--hardware: no step is for {hardware!r}; allowed: {', '.join(named)}"
        raise InvalidInput(msg, field="hardware", value=hardware, allowed=named)
    return chosen


def _parse(number: int, text: str) -> OptimizationStep:
    try:
        return OptimizationStep.model_validate(yaml.safe_load(text))
    except yaml.YAMLError as error:
        msg = f"step {number}: {text!r} cannot be read as YAML: {' '.join(str(error).split())}"
        raise InvalidInput(msg, field="step", value=text) from error
    except ValidationError as error:
        found = invalid_input(error, OptimizationStep)
        msg = f"step {number}: {found.message}"
        raise InvalidInput(msg, field="step", value=found.value, allowed=found.allowed) from error


def _tables(report: "PipelineReport") -> Iterator[Table | str]:
    for number, step in enumerate(report.steps, start=1):
        yield from _step(number, step)
        yield ""
    yield f"snapshot: {report.snapshot}" if report.snapshot else "nothing was derived"


def _step(number: int, report: AccuracyReport) -> Iterator[Table | str]:
    yield f"step {number}: {report.kind}"
    tables = report.details.get("tables", ()) if isinstance(report.details, dict) else ()
    if tables:
        lines = (
            (t["path"], t["rows"], t["columns"], f"{t['before']:,}", f"{t['after']:,}", t.get("kept", ""))
            for t in tables
        )
        yield rows("", ("table", "rows", "columns", "bytes", "after", "kept because"), lines)
    replay = report.replay
    labels = {"replay": ", with labels", "parent": ", labels by the former snapshot's median score"}
    origin = "of the replay set" if replay.source == "replay" else "drawn by the signature"
    yield f"replayed: {replay.rows:,} rows {origin}{labels.get(replay.labels or '', '')}"
    yield rows("", ("figure", "before", "after", "difference"), _figures(report))
    for line in report.broken:
        yield f"broken: {line}"


def _figures(report: AccuracyReport) -> Iterator[tuple[str, ...]]:
    for name, found, form in (
        ("bytes of weights", report.weights_bytes, ",.0f"),
        ("bytes of what was replaced", report.replaced_bytes, ",.0f"),
        ("AUC", report.auc, ".6f"),
        ("log-loss", report.log_loss, ".6f"),
        ("normalized entropy", report.normalized_entropy, ".6f"),
    ):
        if found is not None:
            yield name, format(found.before, form), format(found.after, form), _difference(name, found)
    yield "largest error", "", f"{report.max_error:.3g}", f"{report.max_relative_error:.3g} of the largest figure"
    if report.top_k_overlap is not None:
        yield f"top {report.replay.top_k} overlap", "", f"{report.top_k_overlap:.4f}", ""
    for pair in report.latency_us:
        name = f"p50 of {pair.batch} rows, us"
        yield name, f"{pair.before:.1f}", f"{pair.after:.1f}", f"{pair.after / pair.before:.2f}x"


def _difference(name: str, found: Measured) -> str:
    return f"{found.after / found.before:.3f}x" if name.startswith("bytes") else f"{found.rise:+.6f}"
