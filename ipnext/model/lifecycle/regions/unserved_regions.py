"""User regions that a manifest lists and no region serves: a model with one is never `Ready`. Pure functions."""

from collections.abc import Iterable, Mapping, Sequence

from ipnext.model.deployment.route_table import RouteTable
from ipnext.model.lifecycle.status import Reason
from ipnext.model.manifest.manifest import ModelManifest


def unserved_regions(manifest: ModelManifest, tables: Iterable[RouteTable]) -> Mapping[str, tuple[str, ...]]:
    """Return users' region -> the rules of the plan that leave it unserved, in the order of the manifest.

    No rule is known of a region with a pending table.
    """
    known = {table.region: table for table in tables}
    sent = {region for region, table in known.items() if any(share.fraction > 0 for share in table.shares)}
    missing = [item.region for item in manifest.spec.demand if item.region not in sent]
    rules = {region: table.unmet_rules for region, table in known.items() if not table.pending}
    return {region: rules.get(region, ()) for region in missing}


def routed_before(
    unserved: Mapping[str, tuple[str, ...]], tables: Iterable[RouteTable]
) -> Mapping[str, tuple[str, ...]]:
    """Return the unserved regions with a route table that is not pending: the others were never served."""
    known = {table.region for table in tables if not table.pending}
    return {region: rules for region, rules in unserved.items() if region in known}


def binding_reason(rules: Sequence[str]) -> Reason:
    """Return OverBudget if only budgets bind, NoCapacity if supply does or no rule is known, else PlannerInfeasible."""
    if rules and all(rule.startswith("budget") for rule in rules):
        return Reason.OVER_BUDGET
    short = not rules or any(rule.startswith("supply") for rule in rules)
    return Reason.NO_CAPACITY if short else Reason.PLANNER_INFEASIBLE


def unserved_message(region: str, rules: Sequence[str]) -> str:
    """Return one region's users and the binding rules, in words."""
    return f"no region serves users of {region}" + (f": {', '.join(rules)}" if rules else "")
