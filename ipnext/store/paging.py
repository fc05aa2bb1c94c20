"""Pages of lists: at most `limit` items in a fixed order, and the key at which the next page begins."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Generic, TypeVar

from ipnext.errors import InvalidInput
from ipnext.store.unit_of_work import MOST_ROWS

Item = TypeVar("Item")
Other = TypeVar("Other")
Row = TypeVar("Row")


@dataclass(frozen=True, slots=True)
class Page(Generic[Item]):
    """Part of a list. `next` is the cursor of the following page; None on the last one."""

    items: tuple[Item, ...] = ()
    next: str | None = None

    def map(self, change: Callable[[Item], Other]) -> "Page[Other]":
        """Return the same page with every item changed."""
        return Page(tuple(change(item) for item in self.items), self.next)


def page_of(
    found: Sequence[Row], limit: int, *, key: Callable[[Row], object], value: Callable[[Row], Item]
) -> Page[Item]:
    """Make a page of up to `limit + 1` rows: the additional row means that another page follows."""
    shown = found[:limit]
    following = str(key(shown[-1])) if len(found) > limit and shown else None
    return Page(tuple(value(row) for row in shown), following)


def clamp_limit(limit: int) -> int:
    """Return the limit of a page that both engines accept: 1 to MOST_ROWS."""
    return max(1, min(limit, MOST_ROWS))


def ordinal_of(after: str | None) -> int | None:
    """Read a numeric cursor; None at the beginning of a list. Raises InvalidInput."""
    if after is None:
        return None
    if not after.isascii() or not after.isdecimal() or len(after) > 18:
        raise no_cursor(after)
    return int(after)


def no_cursor(after: str) -> InvalidInput:
    """Return the error for a cursor that no page has returned."""
    msg = f"after: {after!r} is no cursor of this list; allowed: the `next` of its previous page"
    return InvalidInput(msg, field="after", value=after, allowed=("next of the previous page",))
