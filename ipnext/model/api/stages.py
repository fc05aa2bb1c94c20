"""How far a change is in its stages, as users see it."""

from datetime import datetime
from typing import Literal

from ipnext.model.lifecycle.checks import BUILT_IN
from ipnext.model.value import Name, Value

StageState = Literal[
    "to_come", "running", "passed", "skipped", "refused", "failed", "rolled_back", "superseded", "not_reached"
]
"""`skipped`: it had nothing to do. `refused`, `rolled_back` and `superseded` are also the end of the change in it."""


class StageProgress(Value):
    """One stage of a change."""

    name: Name
    source: str = BUILT_IN
    """`built-in`, or the distribution that brings it, with its version and entry point."""
    state: StageState
    began_at: datetime | None = None
    """When the stage before it ended. None: it has not begun, or took no time."""
    seconds: float | None = None
    """Its duration. None while it runs."""
    message: str = ""
    """The answer of an inserted stage."""
