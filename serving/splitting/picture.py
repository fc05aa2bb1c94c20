"""The graph of segments as text and as SVG: one column for each stage."""

from collections.abc import Iterator
from html import escape
from typing import Final

from ipnext.model.registry import REQUEST
from serving.splitting.report import SegmentReport, SplitReport

_WIDTH: Final = 200
_HEIGHT: Final = 52
_GAP_X: Final = 110
_GAP_Y: Final = 26
_MARGIN: Final = 24


def tree(report: SplitReport) -> str:
    """Stage by stage: each segment and what it waits for."""
    lines = [REQUEST]
    for segment in report.segments:
        givers = sorted({t.source for t in report.tensors if segment.name in t.to})
        lines.append(f"{'  ' * (segment.stage + 1)}{segment.name}  <- {', '.join(givers)}")
    answers = ", ".join(f"{name} from {source.partition('.')[0]}" for name, source in report.graph.outputs.items())
    return "\n".join([*lines, f"answer: {answers}"])


def svg(report: SplitReport) -> str:
    """A picture that needs nothing else: boxes are segments, arrows are tensors."""
    places = dict(_places(report))
    right = max(x for x, _ in places.values()) + _WIDTH + _MARGIN
    floor = max(y for _, y in places.values()) + _HEIGHT
    bottom = floor + _GAP_Y + _MARGIN
    body = [*_arrows(report, places, floor), *_boxes(report, places)]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right} {bottom}" width="{right}" height="{bottom}" '
        'font-family="sans-serif" font-size="13">'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#667"/></marker></defs>'
        f'<rect width="{right}" height="{bottom}" fill="#fff"/>'
    )
    return "\n".join([head, *body, "</svg>\n"])


def _places(report: SplitReport) -> Iterator[tuple[str, tuple[int, int]]]:
    columns: dict[int, list[SegmentReport]] = {}
    for segment in report.segments:
        columns.setdefault(segment.stage + 1, []).append(segment)
    tallest = max(len(column) for column in columns.values())
    step = _HEIGHT + _GAP_Y
    middle = _MARGIN + (tallest - 1) * step // 2
    yield REQUEST, (_MARGIN, middle)
    for column, segments in columns.items():
        top = _MARGIN + (tallest - len(segments)) * step // 2
        for row, segment in enumerate(segments):
            yield segment.name, (_MARGIN + column * (_WIDTH + _GAP_X), top + row * step)


def _boxes(report: SplitReport, places: dict[str, tuple[int, int]]) -> Iterator[str]:
    taken = sorted({t.name for t in report.tensors if t.source == REQUEST})
    yield _box(*places[REQUEST], REQUEST, ", ".join(taken), "#eef")
    for segment in report.segments:
        yield _box(*places[segment.name], segment.name, f"{segment.bytes:,} bytes", "#efe")


def _box(x: int, y: int, title: str, text: str, colour: str) -> str:
    short = text if len(text) <= 30 else f"{text[:29]}…"
    return (
        f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="6" fill="{colour}" stroke="#667"/>'
        f'<text x="{x + 10}" y="{y + 22}" font-weight="bold">{escape(title)}</text>'
        f'<text x="{x + 10}" y="{y + 40}" fill="#445">{escape(short)}</text>'
    )


def _arrows(report: SplitReport, places: dict[str, tuple[int, int]], floor: int) -> Iterator[str]:
    """Arrows over more than one column pass below the boxes between."""
    sent: dict[tuple[str, str], list[str]] = {}
    for tensor in report.tensors:
        for taker in tensor.to:
            sent.setdefault((tensor.source, taker), []).append(f"{tensor.name} {tensor.datatype} {list(tensor.shape)}")
    for (giver, taker), names in sent.items():
        (x1, y1), (x2, y2) = places[giver], places[taker]
        start, end = (x1 + _WIDTH, y1 + _HEIGHT // 2), (x2, y2 + _HEIGHT // 2)
        bend = (start[0] + end[0]) // 2
        path = f"M{start[0]} {start[1]} C{bend} {start[1]} {bend} {end[1]} {end[0]} {end[1]}"
        if x2 - x1 > _WIDTH + _GAP_X:
            lane = f"{floor + _GAP_Y // 2}"
            out, back = start[0] + _GAP_X, end[0] - _GAP_X
            path = (
                f"M{start[0]} {start[1]} C{start[0] + 60} {start[1]} {out - 60} {lane} {out} {lane} L{back} {lane} "
                f"C{back + 60} {lane} {end[0] - 60} {end[1]} {end[0]} {end[1]}"
            )
        label = escape("\n".join(names))
        yield f'<path d="{path}" fill="none" stroke="#667" marker-end="url(#tip)"><title>{label}</title></path>'
