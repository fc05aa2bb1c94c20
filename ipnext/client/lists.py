"""Lists of the API as sequences that read their pages when they are needed."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar, overload

from ipnext.model.api.resources import ListPage

Item = TypeVar("Item")

LARGEST_PAGE = 200
"""Items of one request."""


class Listing(Sequence[Item]):
    """A list of the API. The first page is read at once, the others during the iteration.

    Iterate over it, or index it; `len` and a negative index read it to its end. Items that were read are kept. Each
    page is read at a different time.
    """

    def __init__(self, page: Callable[[int, str | None], ListPage[Item]], limit: int | None) -> None:
        """`page(limit, after)` reads one page; `limit` is the most items, None: all."""
        self._page = page
        self._left = limit
        self._items: list[Item] = []
        self._next: str | None = None
        self._whole = False
        self._read()

    def __iter__(self) -> Iterator[Item]:
        position = 0
        while self._reaches(position):
            yield self._items[position]
            position += 1

    @overload
    def __getitem__(self, index: int) -> Item: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Item]: ...
    def __getitem__(self, index: int | slice) -> Item | Sequence[Item]:
        if isinstance(index, slice):
            return tuple(self)[index]
        if index < 0:
            return tuple(self)[index]
        self._reaches(index)
        return self._items[index]

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def __bool__(self) -> bool:
        return self._reaches(0)

    def __repr__(self) -> str:
        return f"Listing({self._items!r}{'' if self._whole else ', ...'})"

    @property
    def next(self) -> str | None:
        """Cursor of the following page; None if the list was read to its end."""
        return self._next

    def _reaches(self, position: int) -> bool:
        while position >= len(self._items) and not self._whole:
            self._read()
        return position < len(self._items)

    def _read(self) -> None:
        size = LARGEST_PAGE if self._left is None else max(1, min(LARGEST_PAGE, self._left))
        page = self._page(size, self._next)
        found = page.items if self._left is None else page.items[: self._left]
        self._items.extend(found)
        self._next = page.next
        if self._left is not None:
            self._left -= len(found)
        self._whole = page.next is None or self._left == 0


def label_params(labels: Mapping[str, str] | None) -> dict[str, Any]:
    """Return the query parameters of a filter by labels."""
    return {"label": [f"{key}={value}" for key, value in labels.items()]} if labels else {}


def params_of(**given: Any) -> dict[str, Any]:
    """Return query parameters without the absent ones; booleans in the form of JSON."""
    return {k: str(v).lower() if isinstance(v, bool) else v for k, v in given.items() if v is not None}
