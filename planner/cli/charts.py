"""Charts of a plan: the use of every hardware kind in every region, in the terminal and as SVG.

Called by `ipnext plan show`. Both draw the same `SupplyUse` values.
"""

import xml.etree.ElementTree as ET
from collections.abc import Callable, Mapping, Sequence

from rich.table import Table
from rich.text import Text

from ipnext.model.planning.explanation import SupplyUse

EIGHTHS = " ▏▎▍▌▋▊▉█"
WIDTH = 8
"""Characters of a bar."""

CROWDED, FULL = 0.8, 0.95
"""Used shares from which a cell is drawn as crowded, and as full."""

Uses = Sequence[SupplyUse]
Axes = tuple[Sequence[str], Sequence[str]]
"""Regions and hardware kinds, in the order in which they are drawn."""


def bars(uses: Uses, axes: Axes) -> Table:
    """Return a bar and the used share of every cell: regions down, hardware across."""
    return _grid("used", uses, axes, _bar)


def units(uses: Uses, axes: Axes) -> Table:
    """Return the used / free units of every cell, and the surge of a transition."""
    surge = any(use.surge for use in uses)
    return _grid("units: used / free" + (" + surge" if surge else ""), uses, axes, _units)


def _grid(title: str, uses: Uses, axes: Axes, cell: Callable[[SupplyUse], Text]) -> Table:
    regions, hardware = axes
    found = {(use.region, use.hardware): use for use in uses}
    table = Table(title=title, title_justify="left", box=None, pad_edge=False, header_style="bold")
    table.add_column("region", overflow="fold")
    for kind in hardware:
        table.add_column(kind, overflow="fold")
    for region in regions:
        row = [found.get((region, kind)) for kind in hardware]
        table.add_row(Text(region), *(Text("·", style="dim") if use is None else cell(use) for use in row))
    return table


def _share(use: SupplyUse) -> float:
    """Return the used share of the units; 1 if there are none and some are used."""
    if use.units > 0:
        return use.used / use.units
    return 1.0 if use.used > 0 else 0.0


def _bar(use: SupplyUse) -> Text:
    share = _share(use)
    eighths = round(min(1.0, share) * WIDTH * 8)
    bar = "█" * (eighths // 8) + (EIGHTHS[eighths % 8] if eighths % 8 else "")
    style = "red" if share >= FULL else "yellow" if share >= CROWDED else "green"
    text = Text(bar.ljust(WIDTH, "░"), style=style)
    return text.append(f" {_percent(share):>4}", style="none")


def _percent(share: float) -> str:
    """Format a whole per cent; 100 % only if full, 0 % only if empty."""
    whole = round(share * 100)
    if share < 1 and whole == 100:
        return "99%"
    return "1%" if share > 0 and whole == 0 else f"{whole}%"


def _units(use: SupplyUse) -> Text:
    text = Text(f"{use.used:.6g} / {use.free:.6g}", style="bold red" if use.free < 0 else "")
    return text.append(f" + {use.surge:.6g}", style="magenta") if use.surge else text


LEFT, TOP, CELL_W, CELL_H, PAD = 150, 84, 148, 46, 5
"""Pixels."""
TRACK, INK, FAINT, SURGE = "#e9edf3", "#1b2733", "#66727f", "#8a3ffc"
COLOURS = ((0.0, "#9ecae9"), (0.5, "#5b9bd5"), (CROWDED, "#f0b429"), (FULL, "#d64545"))
"""Fill from a used share on."""


def svg(uses: Uses, axes: Axes, title: str) -> str:
    """Draw a self-contained picture: a cell for each region and hardware kind, filled to its used share.

    The figures are beside the fill; the surge of a transition is hatched. A cell without supply stays empty.
    """
    regions, hardware = axes
    width, height = LEFT + CELL_W * len(hardware) + 20, TOP + CELL_H * len(regions) + 50
    root = ET.Element(
        "svg",
        {
            "xmlns": "http://www.w3.org/2000/svg",
            "viewBox": f"0 0 {width} {height}",
            "width": str(width),
            "height": str(height),
            "role": "img",
            "font-family": "system-ui, sans-serif",
        },
    )
    ET.SubElement(root, "title").text = title
    _hatching(root)
    _rect(root, (0, 0, width, height), "#ffffff")
    _text(root, (20, 32), title, size=18, weight="600")
    for column, kind in enumerate(hardware):
        _text(root, (LEFT + CELL_W * (column + 0.5), TOP - 12), kind, size=13, weight="600", anchor="middle")
    for row, region in enumerate(regions):
        _text(root, (LEFT - 12, TOP + CELL_H * (row + 0.5) + 4), region, size=13, anchor="end")
    found = {(use.region, use.hardware): use for use in uses}
    for row, region in enumerate(regions):
        for column, kind in enumerate(hardware):
            at = LEFT + CELL_W * column, TOP + CELL_H * row
            use = found.get((region, kind))
            if use is None:
                _text(root, (at[0] + CELL_W / 2, at[1] + CELL_H / 2 + 4), "·", size=13, anchor="middle", colour=FAINT)
            else:
                _cell(root, at, use)
    _legend(root, (20, height - 22), surge=any(use.surge for use in uses))
    ET.indent(root)
    return ET.tostring(root, encoding="unicode") + "\n"


def _cell(root: ET.Element, at: tuple[float, float], use: SupplyUse) -> None:
    """Draw one cell: a track, its filled share, the surge after it, the figures."""
    group = ET.SubElement(root, "g")
    told = f"{use.region}/{use.hardware}: {use.used:.6g} of {use.units:.6g} units used, {use.free:.6g} free"
    ET.SubElement(group, "title").text = told + (f", surge {use.surge:.6g}" if use.surge else "")
    x, y, width, height = at[0] + PAD, at[1] + PAD, CELL_W - 2 * PAD, CELL_H - 2 * PAD
    bar = 12
    share = _share(use)
    _rect(group, (x, y, width, height), "#f7f9fb", stroke="#a61b1b" if use.free < 0 else "#d5dbe3")
    _rect(group, (x + PAD, y + height - bar - PAD, width - 2 * PAD, bar), TRACK)
    filled = (width - 2 * PAD) * min(1.0, share)
    _rect(group, (x + PAD, y + height - bar - PAD, filled, bar), _colour(share))
    if use.surge:
        taken = (width - 2 * PAD) * (min(1.0, use.surge / use.units) if use.units else 1.0)
        left = min(x + PAD + filled, x + width - PAD - taken)
        _rect(group, (left, y + height - bar - PAD, taken, bar), "url(#surge)", stroke=SURGE)
    _text(group, (x + PAD, y + 14), f"{_short(use.used)} / {_short(use.units)}", size=11)
    _text(group, (x + width - PAD, y + 14), _percent(share), size=11, anchor="end", colour=FAINT)


def _short(figure: float) -> str:
    """Format at most six characters up to a million."""
    if figure >= 10_000:
        return f"{figure / 1000:,.1f}k"
    return f"{figure:,.0f}" if figure >= 100 else f"{figure:.4g}"


def _colour(share: float) -> str:
    return next(colour for least, colour in reversed(COLOURS) if share >= least)


def _hatching(root: ET.Element) -> None:
    pattern = ET.SubElement(
        ET.SubElement(root, "defs"),
        "pattern",
        {
            "id": "surge",
            "width": "6",
            "height": "6",
            "patternUnits": "userSpaceOnUse",
            "patternTransform": "rotate(45)",
        },
    )
    _rect(pattern, (0, 0, 3, 6), SURGE)


def _legend(root: ET.Element, at: tuple[float, float], *, surge: bool) -> None:
    names = ["used", "50% and more", f"{CROWDED:.0%} and more", f"{FULL:.0%} and more"]
    marks = [(colour, name) for (_, colour), name in zip(COLOURS, names, strict=True)]
    marks += [("url(#surge)", "surge of the transition")] if surge else []
    x = at[0]
    for fill, name in marks:
        _rect(root, (x, at[1] - 10, 12, 12), fill)
        _text(root, (x + 18, at[1]), name, size=12, colour=FAINT)
        x += 34 + 7.0 * len(name)


def _rect(parent: ET.Element, box: tuple[float, float, float, float], fill: str, stroke: str | None = None) -> None:
    x, y, width, height = (f"{figure:.2f}".rstrip("0").rstrip(".") for figure in box)
    attributes: Mapping[str, str] = {"x": x, "y": y, "width": width, "height": height, "rx": "2", "fill": fill}
    ET.SubElement(parent, "rect", {**attributes, **({"stroke": stroke} if stroke else {})})


def _text(  # noqa: PLR0913 - how a text looks
    parent: ET.Element,
    at: tuple[float, float],
    text: str,
    *,
    size: int,
    weight: str = "400",
    anchor: str = "start",
    colour: str = INK,
) -> None:
    attributes = {
        "x": f"{at[0]:g}",
        "y": f"{at[1]:g}",
        "font-size": str(size),
        "font-weight": weight,
        "text-anchor": anchor,
        "fill": colour,
    }
    ET.SubElement(parent, "text", attributes).text = text
