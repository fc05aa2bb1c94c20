"""The parts that a generation is cut into, for people: tables, the graph as text, the graph as a picture."""

from collections.abc import Iterable

from rich.table import Table

from ipnext.cli.output import number, rows
from ipnext.cli.tables import graph_view
from ipnext.model.fleet import HardwareOption
from ipnext.model.registry.registry import REQUEST, SplitLayout, source_node, source_tensor


def layout_tables(layout: SplitLayout, title: str) -> Iterable[Table | str]:
    """Parts, segments and the graph."""
    parts = (
        (p.name, f"{p.size_bytes:,}", _hardware(p.hardware), " ".join(s.name for s in p.segments), " ".join(p.modules))
        for p in layout.parts
    )
    yield rows(f"\n{title}", ("part", "bytes", "hardware", "segments", "modules"), parts)
    yield _segments_table(layout)
    yield f"\n{graph_view.tree(layout.graph, {s.name: s.stage for s in layout.segments})}"
    yield f"equal in every bit at batch {', '.join(map(str, layout.equal_at))}"


def _segments_table(layout: SplitLayout) -> Table:
    """One line for each segment, with its snapshots on hardware kinds that have others."""
    heads = ["segment", "stage", "snapshot", "bytes"]
    cells = [[s.name, s.stage, s.snapshot, f"{s.size_bytes:,}"] for s in layout.segments]
    if layout.by_hardware:
        heads.append("on hardware")
        for line, segment in zip(cells, layout.segments, strict=True):
            line.append(_describe_others(layout, segment.name))
    return rows("\nsegments", heads, cells)


def _describe_others(layout: SplitLayout, segment: str) -> str:
    kinds = sorted(layout.by_hardware.items())
    return ", ".join(f"{cut.segments[segment]} on {kind}" for kind, cut in kinds if segment in cut.segments)


def layout_picture(layout: SplitLayout) -> str:
    """Draw the graph as SVG: boxes are segments, arrows are tensors."""
    boxes = [graph_view.Box(s.name, s.stage, f"{s.size_bytes:,} bytes") for s in layout.segments]
    sent: dict[tuple[str, str], list[str]] = {}
    for node in layout.graph.nodes:
        for source in node.inputs.values():
            sent.setdefault((source_node(source), node.name), []).append(source_tensor(source))
    taken = {tensor for (giver, _), tensors in sent.items() if giver == REQUEST for tensor in tensors}
    return graph_view.svg(boxes, sent, request=", ".join(sorted(taken)))


def _hardware(options: Iterable[HardwareOption]) -> str:
    return " ".join(f"{o.kind}({number(o.units)} units, {number(o.throughput)} requests/s)" for o in options)
