"""The rules of a new route table, shared by the agent and the fake."""

from collections.abc import Collection
from typing import TypeVar

from ipnext.errors import InvalidInput, StaleWrite
from ipnext.model.access.predictions import AccessList
from ipnext.model.deployment.route_table import RouteTable

Revised = TypeVar("Revised", RouteTable, AccessList)


def check_revision(table: RouteTable, in_force: RouteTable | None) -> None:
    """Raise StaleWrite unless `table` may replace `in_force`: it is later, or the same one again."""
    _check_later(table, in_force, f"route table of model {table.model!r} in region {table.region!r}")


def check_access(access: AccessList, in_force: AccessList | None, *, region: str) -> None:
    """Raise StaleWrite unless a list may replace `in_force`: it is later, or the same one again."""
    _check_later(access, in_force, f"access list of region {region!r}")


def _check_later(given: Revised, in_force: Revised | None, subject: str) -> None:
    if in_force is None or given.revision > in_force.revision or given == in_force:
        return
    same = given.revision == in_force.revision
    reason = "the one in force has other content" if same else f"revision {in_force.revision} is in force"
    msg = f"{subject}: revision {given.revision} was given, but {reason}; give a revision above {in_force.revision}"
    raise StaleWrite(msg)


def check_destinations(table: RouteTable, regions: Collection[str]) -> None:
    """Raise InvalidInput if a share goes to an unknown region, or here to a generation that is not served."""
    served = {generation.generation for generation in table.served}
    for index, share in enumerate(table.shares):
        if share.to not in regions:
            field = f"shares.{index}.to"
            msg = f"{field}: no region {share.to!r}; known: {', '.join(sorted(regions))}"
            raise InvalidInput(msg, field=field, value=share.to, allowed=sorted(regions))
        if share.to == table.region and share.generation not in served:
            field = f"shares.{index}.generation"
            allowed = [str(number) for number in sorted(served)]
            msg = (
                f"{field}: generation {share.generation} is not in `served` of this table; served: "
                f"{', '.join(allowed) or 'none'}"
            )
            raise InvalidInput(msg, field=field, value=share.generation, allowed=allowed)
