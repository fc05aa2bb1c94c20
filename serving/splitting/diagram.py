"""A split report as a text tree and as an image."""

from ipnext.cli.tables import graph_view
from ipnext.model.registry.registry import REQUEST
from serving.splitting.report import SplitReport


def tree(report: SplitReport) -> str:
    """Return each segment with its dependencies, stage by stage."""
    return graph_view.tree(report.graph, {segment.name: segment.stage for segment in report.segments})


def svg(report: SplitReport) -> str:
    """Return a self-contained image: boxes are segments, arrows are tensors with datatype and shape."""
    boxes = [graph_view.Box(s.name, s.stage, f"{s.bytes:,} bytes") for s in report.segments]
    sent: dict[tuple[str, str], list[str]] = {}
    for tensor in report.tensors:
        line = f"{tensor.name} {tensor.datatype} {list(tensor.shape)}"
        packed = f", {len(tensor.carries)} tensors" if tensor.carries else ""
        for taker in tensor.to:
            sent.setdefault((tensor.source, taker), []).append(line + packed)
    taken = sorted({t.name for t in report.tensors if t.source == REQUEST})
    return graph_view.svg(boxes, sent, request=", ".join(taken))
