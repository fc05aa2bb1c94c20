"""Sizes of tensors in the export's notation: a number, the batch, a multiple of the batch, or another expression."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

_SYMBOL = r"Symbol\('[^']*'[^()]*\)"
_MULTIPLE = re.compile(rf"Mul\(Integer\((\d+)\), ({_SYMBOL})\)|Mul\(({_SYMBOL}), Integer\((\d+)\)\)")
_PLAIN = re.compile(_SYMBOL)


@dataclass(frozen=True, slots=True)
class Dimension:
    """One size. `text` is None for a number; `hint` is its value at the export's batch size."""

    hint: int
    text: str | None = None

    def times(self, symbol: str | None) -> int | None:
        """Return the factor of `symbol`; 0 for a number, None for another expression."""
        if self.text is None:
            return 0
        if self.text == symbol:
            return 1
        found = _MULTIPLE.fullmatch(self.text)
        if found is None or symbol not in {found[2], found[3]}:
            return None
        return int(found[1] or found[4])

    @property
    def is_plain(self) -> bool:
        """Whether it is a number or a single symbol."""
        return self.text is None or _PLAIN.fullmatch(self.text) is not None


def dimension(item: Mapping[str, Any]) -> Dimension:
    """Parse a size from its JSON form."""
    if "as_int" in item:
        return Dimension(int(item["as_int"]))
    expression = item["as_expr"]
    hint = (expression.get("hint") or {}).get("as_int")
    return Dimension(int(hint) if hint is not None else -1, str(expression["expr_str"]))


def written(size: Dimension) -> dict[str, Any]:
    """Return the JSON form of a size."""
    if size.text is None:
        return {"as_int": size.hint}
    return {"as_expr": {"expr_str": size.text, "hint": None if size.hint < 0 else {"as_int": size.hint}}}
