"""The graph of a split model as text and as SVG: one column for each stage.

Used by `describe` and by `ipnext split`.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from typing import Final

from ipnext.model.registry.registry import REQUEST, PartGraph, source_node

_WIDTH: Final = 200
_HEIGHT: Final = 52
_GAP_X: Final = 110
_GAP_Y: Final = 26
_MARGIN: Final = 24

Arrows = Mapping[tuple[str, str], Sequence[str]]
"""(giver, taker) -> a line for each tensor."""


@dataclass(frozen=True, slots=True)
class Box:
    """A segment in the picture. `stage` is 0 if it waits for the request only."""

    name: str
    stage: int
    text: str


def tree(graph: PartGraph, stages: Mapping[str, int]) -> str:
    """Stage by stage: each segment and what it waits for."""
    lines = [REQUEST]
    for node in graph.nodes:
        givers = sorted({source_node(source) for source in node.inputs.values()})
        lines.append(f"{'  ' * (stages[node.name] + 1)}{node.name}  <- {', '.join(givers)}")
    answers = ", ".join(f"{name} from {source_node(source)}" for name, source in graph.outputs.items())
    return "\n".join([*lines, f"answer: {answers}"])


def svg(boxes: Sequence[Box], arrows: Arrows, *, request: str) -> str:
    """Draw a picture that needs nothing else: boxes are segments, arrows are tensors.

    `request` is the text in the request's box.
    """
    places = dict(_places(boxes))
    right = max(x for x, _ in places.values()) + _WIDTH + _MARGIN
    floor = max(y for _, y in places.values()) + _HEIGHT
    bottom = floor + _GAP_Y + _MARGIN
    drawn = [_box(*places[REQUEST], REQUEST, request, "#eef")]
    drawn += [_box(*places[box.name], box.name, box.text, "#efe") for box in boxes]
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {right} {bottom}" width="{right}" height="{bottom}" '
        'font-family="sans-serif" font-size="13">'
        '<defs><marker id="tip" viewBox="0 0 8 8" refX="8" refY="4" markerWidth="7" markerHeight="7" orient="auto">'
        '<path d="M0 0 8 4 0 8z" fill="#667"/></marker></defs>'
        f'<rect width="{right}" height="{bottom}" fill="#fff"/>'
    )
    return "\n".join([head, *_paths(arrows, places, floor), *drawn, "</svg>\n"])


def _places(boxes: Sequence[Box]) -> Iterator[tuple[str, tuple[int, int]]]:
    columns: dict[int, list[Box]] = {}
    for box in boxes:
        columns.setdefault(box.stage + 1, []).append(box)
    tallest = max(len(column) for column in columns.values())
    step = _HEIGHT + _GAP_Y
    middle = _MARGIN + (tallest - 1) * step // 2
    yield REQUEST, (_MARGIN, middle)
    for column, found in columns.items():
        top = _MARGIN + (tallest - len(found)) * step // 2
        for row, box in enumerate(found):
            yield box.name, (_MARGIN + column * (_WIDTH + _GAP_X), top + row * step)


def _box(x: int, y: int, title: str, text: str, colour: str) -> str:
    short = text if len(text) <= 30 else f"{text[:29]}…"
    return (
        f'<rect x="{x}" y="{y}" width="{_WIDTH}" height="{_HEIGHT}" rx="6" fill="{colour}" stroke="#667"/>'
        f'<text x="{x + 10}" y="{y + 22}" font-weight="bold">{escape(title)}</text>'
        f'<text x="{x + 10}" y="{y + 40}" fill="#445">{escape(short)}</text>'
    )


def _paths(arrows: Arrows, places: Mapping[str, tuple[int, int]], floor: int) -> Iterator[str]:
    """Arrows over more than one column pass below the boxes between."""
    for (giver, taker), names in arrows.items():
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
