"""The rules of a new route table, shared by the agent and the fake."""

from collections.abc import Collection

from ipnext.errors import InvalidInput, StaleWrite
from ipnext.model.deployment import RouteTable
from ipnext.model.predictions import AccessList


def check_revision(table: RouteTable, in_force: RouteTable | None) -> None:
    """Raise StaleWrite unless `table` may replace `in_force`: it is later, or the same one again."""
    if in_force is None or table.revision > in_force.revision or table == in_force:
        return
    same = table.revision == in_force.revision
    reason = "the one in force has other content" if same else f"revision {in_force.revision} is in force"
    msg = (
        f"route table of model {table.model!r} in region {table.region!r}: revision {table.revision} was given, "
        f"but {reason}; give a revision above {in_force.revision}"
    )
    raise StaleWrite(msg)


def check_access(access: AccessList, in_force: AccessList | None, *, region: str) -> None:
    """Raise StaleWrite unless a list may replace `in_force`: it is later, or the same one again."""
    if in_force is None or access.revision > in_force.revision or access == in_force:
        return
    same = access.revision == in_force.revision
    reason = "the one in force has other content" if same else f"revision {in_force.revision} is in force"
    msg = (
        f"access list of region {region!r}: revision {access.revision} was given, but {reason}; "
        f"give a revision above {in_force.revision}"
    )
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
            msg = f"{field}: generation {share.generation} is not in `served` of this table; served: {', '.join(allowed) or 'none'}"
            raise InvalidInput(msg, field=field, value=share.generation, allowed=allowed)
