"""Users whom a route table sends to a generation that does not serve. Pure functions."""

from collections.abc import Iterable

from ipnext.model.deployment.route_table import RouteTable


def describe_astray(tables: Iterable[RouteTable], serving: int) -> tuple[str, ...]:
    """Describe, for each table, the users that are sent to another generation than the `serving` one."""
    found = ((table.region, _others(table, serving)) for table in tables)
    return tuple(f"users of {region} are sent to generation {others}" for region, others in found if others)


def _others(table: RouteTable, serving: int) -> str:
    numbers = {share.generation for share in table.shares if share.fraction > 0} - {serving}
    return ", ".join(map(str, sorted(numbers)))
