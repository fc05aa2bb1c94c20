"""What `ipnext wait --for` waits for: a condition with a status, or the end of a change."""

from typing import NamedTuple

from ipnext.errors import InvalidInput
from ipnext.model.lifecycle.status import ConditionStatus, ConditionType

_STATUSES: tuple[ConditionStatus, ...] = ("True", "False", "Unknown")
_ALLOWED = (
    "ready",
    *(kind.value for kind in ConditionType),
    "any of these with =False or =Unknown",
    "condition=TYPE[=STATUS]",
    "change=ID",
)


class ForCondition(NamedTuple):
    """A condition of the model has a status."""

    kind: ConditionType
    status: ConditionStatus


class ForChange(NamedTuple):
    """A change has ended."""

    change_id: str


def target_of(text: str) -> ForCondition | ForChange:
    """Read `Serving`, `UpToDate=False`, `condition=Ready=True` as kubectl has it, or `change=ID`. InvalidInput.

    Case does not matter in types and statuses.
    """
    head, _, rest = text.partition("=")
    if head == "change" and rest:
        return ForChange(rest)
    named = rest if head.lower() == "condition" else text
    name, equals, wanted = named.partition("=")
    kind = next((kind for kind in ConditionType if kind.value.lower() == name.lower()), None)
    status = next((status for status in _STATUSES if status.lower() == (wanted.lower() if equals else "true")), None)
    if kind is None or status is None:
        msg = f"--for: {text!r} is not known; allowed: {', '.join(_ALLOWED)}"
        raise InvalidInput(msg, field="for", value=text, allowed=_ALLOWED)
    return ForCondition(kind, status)
