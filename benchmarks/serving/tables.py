"""The report as tables, for a terminal and for docs/serving-benchmarks.md."""

from collections.abc import Callable, Iterator, Sequence

from rich.console import Console
from rich.table import Table

from benchmarks.environments import ROOT
from benchmarks.serving.dlrm import FULL_ROWS, LARGE_ROWS
from benchmarks.serving.report import Report, Row, Section
from benchmarks.serving.targets import TARGETS, at_equal_p99, cpu, fastest, ours_beside, p50, p99, ratio

PAGE = ROOT / "docs" / "serving-benchmarks.md"
Lines = list[tuple[str, ...]]
_RATIOS = ("min", "p50", "p99", "CPU")


def targets(report: Report) -> tuple[Sequence[str], Lines]:
    """Every figure to reach, with what was measured."""
    lines: Lines = []
    for target in TARGETS:
        value = target.read(report)
        shown = "not measured" if value is None else f"{value:.2f}"
        verdict = "" if value is None else "yes" if target.reached(value) else "no"
        lines.append((target.figure, target.limit, shown, verdict, target.baseline))
    return ("figure", "target", "measured", "reached", "baseline"), lines


def ways(report: Report, section: Section) -> tuple[Sequence[str], Lines]:
    """Rows over their baselines."""
    lines = [
        (*_what(row), row.baseline_is, *_ratios(row), _micro(row.own.p50 if row.own else None), _bits(row))
        for row in report.of(section)
    ]
    return ("way", "form", "batch", "over", *_ratios_head(), "p50, µs", "bits"), lines


def peers(report: Report) -> tuple[Sequence[str], Lines]:
    """Each peer over the eager forward, ours in the same turns, and the peer over ours."""
    lines: Lines = []
    for row in report.of("peers"):
        if row.subject.startswith("IPnext"):
            continue
        ours = ours_beside(report, row)
        if ours is None or ours.own is None or row.own is None:
            lines.append((row.subject, row.form, "", *[""] * 8, row.note))
            continue
        gain = f"**{row.own.p50 / ours.own.p50:.2f}**"
        lines.append((*_what(row), *_ratios(row), *_ratios(ours)[:2], _ratios(ours)[3], gain, row.note))
    return (
        "peer",
        "form",
        "batch",
        *_ratios_head(),
        "ours min",
        "ours p50",
        "ours CPU",
        "peer/ours p50",
        "note",
    ), lines


def throughput(report: Report) -> tuple[Sequence[str], Lines]:
    """Tabulate closed loops: each peer, and ours by the rule of equal p99."""
    lines: Lines = []
    for row in report.of("throughput"):
        if row.subject.startswith("IPnext") or row.own is None:
            if row.own is None:
                lines.append((row.subject, row.form, *[""] * 9, row.note))
            continue
        ours = at_equal_p99(report, row) if row.beside else None
        mine: tuple[str, ...] = ("", "", "", "")
        if ours is not None and ours.own is not None:
            gain = f"**{ours.own.qps / row.own.qps:.2f}**"
            mine = (f"{ours.clients}", f"{_of_eager(ours):.2f}", f"{_over_eager(ours):.1f}", gain)
        own = (f"{row.own.qps:,.0f}", f"{_of_eager(row):.2f}", f"{_over_eager(row):.1f}")
        lines.append((*_what(row), f"{row.clients}", *own, *mine, row.note))
    head = ("server", "form", "batch", "clients", "QPS", "of eager", "p99", "our clients", "ours of eager", "our p99")
    return (*head, "ours/peer QPS", "note"), lines


def _of_eager(row: Row) -> float:
    return row.own.qps / row.baseline.qps if row.own and row.baseline else 0.0


def _over_eager(row: Row) -> float:
    return row.own.p99 / row.baseline.p50 if row.own and row.baseline else 0.0


def release(report: Report) -> tuple[Sequence[str], Lines]:
    """Seconds from publishing to answering everywhere."""
    rows = [row for row in report.of("release") if row.own]
    lines = [
        (row.subject, *(f"{value:.3f}" for value in (row.own.p50, row.own.fastest, row.own.p99)), f"{row.own.calls}")
        for row in rows
        if row.own
    ]
    return ("stage", "median, s", "min", "max", "publishes"), lines


def _ratios_head() -> tuple[str, ...]:
    return _RATIOS


def _what(row: Row) -> tuple[str, str, str]:
    return row.subject, row.form, f"{row.batch or ''}"


def _ratios(row: Row) -> tuple[str, ...]:
    values = [ratio(row, of) for of in (fastest, p50, p99, cpu)]
    return tuple("" if value is None else f"{value:.2f}" for value in values)


def _micro(seconds: float | None) -> str:
    return "" if seconds is None else f"{seconds * 1e6:,.0f}"


def _bits(row: Row) -> str:
    return row.note if row.bit_equal is None else "equal" if row.bit_equal else "differ"


BLOCKS: dict[str, Callable[[Report], tuple[Sequence[str], Lines]]] = {
    "targets": targets,
    "ours": lambda report: ways(report, "ours"),
    "peers": peers,
    "throughput": throughput,
    "split": lambda report: ways(report, "split"),
    "large": lambda report: ways(report, "large"),
    "layers": lambda report: ways(report, "layers"),
    "release": release,
}


def show(report: Report, console: Console) -> None:
    """All tables that have lines, in a terminal."""
    for name, block in BLOCKS.items():
        head, lines = block(report)
        if lines:
            table = Table(title=name)
            for column in head:
                table.add_column(column)
            for line in lines:
                table.add_row(*(cell.replace("**", "") for cell in line))
            console.print(table)


def markdown(report: Report, name: str) -> str:
    """Return a block for the page: machine, command, table."""
    head, lines = BLOCKS[name](report)
    made = report.commands.get(name)
    rows = LARGE_ROWS if name == "large" and report.rows_per_table == FULL_ROWS else report.rows_per_table
    text = [f"Machine: {report.machine}. Model: {rows:,} rows in each table.", ""]
    text += [f"Command: `{made}`", ""] if made else []
    text += list(_pictures(name))
    text += ["| " + " | ".join(head) + " |", "|---" * len(head) + "|"]
    text += ["| " + " | ".join(cell.replace("|", "/").replace("\n", " ") for cell in line) + " |" for line in lines]
    return "\n".join([*text, ""])


def _pictures(name: str) -> Iterator[str]:
    if name in ("peers", "throughput"):
        yield f"![{name}](images/serving/{name}.svg)"
        yield ""


def rewritten(text: str, report: Report) -> str:
    """Return a page with new blocks between `<!-- measured: NAME -->` and `<!-- end -->`.

    They are those of the report if it has lines of that name.
    """
    for name, block in BLOCKS.items():
        _, lines = block(report)
        if lines and (name != "targets" or report.rows):
            begin, end = f"<!-- measured: {name} -->", "<!-- end -->"
            before, rest = text.split(begin, 1)
            _, after = rest.split(end, 1)
            text = f"{before}{begin}\n\n{markdown(report, name)}\n{end}{after}"
    return text
