"""Finished steps of optimization pipelines in the form of the API. Pure."""

from ipnext.model.api.derivatives import DerivativeView, describe_replay, read_figures
from ipnext.store.registry.derivations import ListedDerivation


def view_derivation(found: ListedDerivation) -> DerivativeView:
    """Return a finished step with its figures, and why nothing was derived."""
    report = found.report
    return DerivativeView(
        part=found.part,
        kind=report.kind,
        parent=found.parent,
        parent_digest=found.parent_digest,
        snapshot=found.snapshot,
        published=found.published,
        hardware=found.hardware,
        state="refused" if found.snapshot is None else "released" if found.is_collected else "derived",
        reasons=report.broken,
        figures=read_figures(report),
        replayed=describe_replay(report),
        tools=report.tools,
        created_at=found.created_at,
    )
