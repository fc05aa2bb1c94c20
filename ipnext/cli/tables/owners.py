"""What `get`, `describe`, `apply` and `delete` show of owners."""

from collections.abc import Iterable

from rich.table import Table

from ipnext.cli.output import number, rows
from ipnext.model.access.owner import MODELS, OwnerView, QuotaUse


def owners_table(owners: Iterable[OwnerView]) -> Table:
    """One line for each owner."""
    return rows("", ("owner", "priority", "models", "members", "quotas exceeded"), map(_line, owners))


def owner_tables(view: OwnerView) -> Iterable[Table | str]:
    """All of one owner: members, and usage beside limits."""
    spec = view.manifest.spec
    told = f": {spec.description}" if spec.description else ""
    yield f"owner {view.manifest.name}, version {view.version}, priority {spec.priority}{told}"
    if view.fleet_budget_per_hour is not None:
        yield f"plans spend at most {number(view.fleet_budget_per_hour)} $/h on it (the fleet's budget of this owner)"
    yield rows("\nmembers", ("subject", "role"), ((m.subject, m.role.value) for m in spec.members or ()))
    heads = ("quota", "used", "limit", "by the plan in force")
    yield rows("\nquotas", heads, map(_usage, view.usage))
    if view.models_without_budget:
        yield f"models without spec.budgetPerHour, which count 0 $/h: {view.models_without_budget}"
    yield from view.warnings


def _line(view: OwnerView) -> tuple[object, ...]:
    spec = view.manifest.spec
    models = next((use for use in view.usage if use.quota == MODELS), QuotaUse(quota=MODELS, used=0))
    limit = "" if models.limit is None else f" of {number(models.limit)}"
    exceeded = ", ".join(use.quota for use in view.usage if use.is_exceeded)
    return view.manifest.name, spec.priority, f"{number(models.used)}{limit}", len(spec.members or ()), exceeded


def _usage(use: QuotaUse) -> tuple[object, ...]:
    limit = "no limit" if use.limit is None else number(use.limit)
    return use.quota, number(use.used), limit, "" if use.placed is None else number(use.placed)
