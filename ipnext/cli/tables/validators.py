"""How validators are shown."""

from collections.abc import Iterable

from rich.table import Table

from ipnext.cli.output import rows
from ipnext.model.api.plugins import ValidatorView


def validators_table(validators: Iterable[ValidatorView]) -> Table:
    """One line for each validator and each refused plug-in."""
    lines = ((v.name, v.state, "yes" if v.skippable else "no", v.source, v.reason or "-") for v in validators)
    return rows("", ("validator", "state", "can be skipped", "source", "reason"), lines)
