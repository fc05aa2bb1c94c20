"""The prompt of a generating node, built from its input tensors: written in the graph, read by the router.

A template is text with names in braces; `{{` and `}}` are literal braces. Inserted text is never read as a template.
"""

import re
from collections.abc import Iterator, Mapping
from string import Formatter
from typing import Final, Self

from pydantic import Field, model_validator

from ipnext.model.value import Value

PROMPT: Final = "prompt"
"""Input of a generating node, and its place in the template: the client's text."""
NUMBER: Final = "number"
"""Place in the text of a list's item: 1, 2, 3, ..."""
_NAME: Final = re.compile(r"[A-Za-z_][A-Za-z0-9_]*")


class PromptList(Value):
    """A text for each element of the inputs that `item` names; all of them have equally many."""

    item: str
    """Template of one element's text; places are inputs of the node and `number`."""
    order: str | None = None
    """Input with a number for each element: the highest comes first, equals as they came."""
    top: int | None = Field(default=None, ge=1)
    """So many elements, the first ones; left out: all."""

    @property
    def inputs(self) -> frozenset[str]:
        """The inputs in use."""
        named = set(places(self.item)) - {NUMBER}
        return frozenset(named if self.order is None else named | {self.order})


class PromptTemplate(Value):
    """Text with places for `prompt`, for the lists, and for inputs of one element."""

    template: str
    lists: Mapping[str, PromptList] = Field(default_factory=dict)

    @property
    def inputs(self) -> frozenset[str]:
        """The node's inputs in use."""
        return frozenset(set(places(self.template)) - self.lists.keys()).union(
            *(one.inputs for one in self.lists.values())
        )

    @property
    def orders(self) -> frozenset[str]:
        """The inputs that order a list: numbers."""
        return frozenset(one.order for one in self.lists.values() if one.order is not None)

    @model_validator(mode="after")
    def _places_are_known(self) -> Self:
        named = _check_template("template", self.template)
        if PROMPT not in named:
            msg = (
                f"template: has no place {{{PROMPT}}}, so what the client asks would be lost; "
                f"got {self.template!r:.200}"
            )
            raise ValueError(msg)
        for name, one in self.lists.items():
            if name not in named:
                msg = f"lists.{name}: the template has no place {{{name}}}; its places: {', '.join(sorted(named))}"
                raise ValueError(msg)
            if not _check_template(f"lists.{name}.item", one.item) - {NUMBER}:
                msg = (
                    f"lists.{name}.item: names no input of the node, so nothing says how many there are; "
                    f"got {one.item!r:.200}"
                )
                raise ValueError(msg)
            if one.inputs & {PROMPT, *self.lists}:
                taken = sorted(one.inputs & {PROMPT, *self.lists})
                msg = f"lists.{name}: {taken} have their place in the template, not in an item"
                raise ValueError(msg)
        return self


def pieces(template: str) -> Iterator[tuple[str, str | None]]:
    """Yield each text with the name of the place after it; None after the last text.

    Raises:
        ValueError: the template has a single brace.
    """
    for text, name, _, _ in Formatter().parse(template):
        yield text, name


def places(template: str) -> tuple[str, ...]:
    """Return the names in braces."""
    return tuple(name for _, name in pieces(template) if name is not None)


def _check_template(field: str, template: str) -> set[str]:
    """Return the names of a template's places.

    Raises:
        ValueError: the template is invalid; it has the field's name.
    """
    try:
        found = list(Formatter().parse(template))
    except ValueError as error:
        msg = f"{field}: {error}; a brace of the text itself is written twice, got {template!r:.200}"
        raise ValueError(msg) from error
    for _, name, form, conversion in found:
        if name is not None and (form or conversion or not _NAME.fullmatch(name)):
            shown = f"{name}{'!' + conversion if conversion else ''}{':' + form if form else ''}"
            msg = f"{field}: {{{shown}}} is no place; a place is a name of letters, digits and _ in braces"
            raise ValueError(msg)
    return {name for _, name, _, _ in found if name is not None}
