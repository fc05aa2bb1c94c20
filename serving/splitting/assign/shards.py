"""Sharding: distributes the modules of a part over sub-parts, by a budget of bytes or by count."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Final

from ipnext.errors import InvalidInput
from ipnext.model.manifest.split import ShardSpec
from serving.splitting.assign.modules import Ownership, lineage
from serving.splitting.ir.program import Program, ProgramWeight

_MOST_NAMED: Final = 8


@dataclass(frozen=True, slots=True)
class ShardUnit:
    """An indivisible unit: a table, or a module without its tables. `order` is its position in the program."""

    path: str
    size_bytes: int
    order: int
    is_table: bool


class PartUnits:
    """The units of one part. Modules that are too big or too few are opened, if they contain other modules."""

    def __init__(self, part: str, program: Program, ownership: Ownership, tables: Mapping[str, str]) -> None:
        self._weights: dict[str, list[ProgramWeight]] = {}
        self._tables: set[str] = set()
        self._order = {path: i for i, path in reversed(list(enumerate(o.path for o in program.operations)))}
        used = {name for operation in program.operations for name in operation.inputs}
        keys = {w.key for w in program.weights.values() if w.name in used}
        owned = {w.key: w for w in program.weights.values() if w.key in keys and ownership.owner(w.path) == part}
        for weight in owned.values():
            table = tables.get(weight.key)
            if table is not None and ownership.owner(table) == part:
                self._tables.add(table)
            path = table if table in self._tables else ownership.root(weight.path)
            self._weights.setdefault(path or weight.path, []).append(weight)

    @property
    def units(self) -> tuple[ShardUnit, ...]:
        """The units in the order of the program."""
        found = [self._unit(path, weights) for path, weights in self._weights.items()]
        return tuple(sorted(found, key=lambda unit: (unit.order, unit.path)))

    def open_until(self, shard: ShardSpec) -> tuple[ShardUnit, ...]:
        """Return the units once those too big for the budget, or too few for the count, are opened."""
        while True:
            units = self.units
            largest = sorted(units, key=lambda unit: -unit.size_bytes)
            if shard.by == "bytes":
                largest = [unit for unit in largest if unit.size_bytes > (shard.max_bytes or 0)]
            elif len(units) >= (shard.count or 1):
                return units
            if not any(self._open(unit) for unit in largest):
                return units

    def _open(self, unit: ShardUnit) -> bool:
        if unit.is_table:
            return False
        inner: dict[str, list[ProgramWeight]] = {}
        for weight in self._weights[unit.path]:
            rest = weight.path.removeprefix(f"{unit.path}.")
            below = f"{unit.path}.{rest.partition('.')[0]}" if "." in rest else unit.path
            inner.setdefault(below, []).append(weight)
        if set(inner) == {unit.path}:
            return False
        del self._weights[unit.path]
        for path, weights in inner.items():
            self._weights.setdefault(path, []).extend(weights)
        return True

    def _unit(self, path: str, weights: Sequence[ProgramWeight]) -> ShardUnit:
        inside = [o for p, o in self._order.items() if path in lineage(p)]
        size = sum({w.key: w.size_bytes for w in weights}.values())
        return ShardUnit(path, size, min(inside, default=0), path in self._tables)


def deal(
    units: Sequence[ShardUnit], shard: ShardSpec, *, field: str, reserved_bytes: int = 0
) -> tuple[tuple[ShardUnit, ...], ...]:
    """Distribute the units over sub-parts. `reserved_bytes` of each budget are kept for copies.

    InvalidInput names `field`.
    """
    if shard.by == "count":
        return _by_count(units, shard.count or 1, field)
    return _by_bytes(units, shard.max_bytes or 0, field, reserved_bytes)


def _by_bytes(units: Sequence[ShardUnit], limit: int, field: str, reserved: int) -> tuple[tuple[ShardUnit, ...], ...]:
    largest = max(units, key=lambda unit: unit.size_bytes, default=None)
    if largest is None:
        raise _nothing_to_deal(field)
    room = limit - reserved
    if largest.size_bytes > room:
        also = f" and its sub-part {reserved:,} more for small copies" if largest.size_bytes <= limit else ""
        msg = (
            f"{field}.max_bytes: {limit:,} is too little: module {largest.path!r} alone holds "
            f"{largest.size_bytes:,} bytes"
            f"{also}, and a module stays whole; allow {largest.size_bytes + reserved:,} or more"
        )
        raise InvalidInput(msg, field=f"{field}.max_bytes", value=limit)
    bins: list[list[ShardUnit]] = []
    scattered = any(unit.is_table for unit in units)
    for unit in _dealing_order(units):
        fitting = (
            b for b in (bins if scattered else bins[-1:]) if sum(u.size_bytes for u in b) + unit.size_bytes <= room
        )
        target = next(fitting, None)
        if target is None:
            bins.append([unit])
        else:
            target.append(unit)
    return tuple(map(tuple, bins))


def _by_count(units: Sequence[ShardUnit], count: int, field: str) -> tuple[tuple[ShardUnit, ...], ...]:
    if not units:
        raise _nothing_to_deal(field)
    if count > len(units):
        names = ", ".join(unit.path for unit in units[:_MOST_NAMED])
        msg = f"{field}.count: {count} is more than the {len(units)} modules that can be dealt out: {names}"
        raise InvalidInput(msg, field=f"{field}.count", value=count)
    if not any(unit.is_table for unit in units):
        return _in_a_row(units, count)
    bins: list[list[ShardUnit]] = [[] for _ in range(count)]
    for unit in _dealing_order(units):
        min(bins, key=lambda b: (sum(u.size_bytes for u in b), len(b))).append(unit)
    return _alike_in_a_row(bins)


def _alike_in_a_row(bins: Sequence[Sequence[ShardUnit]]) -> tuple[tuple[ShardUnit, ...], ...]:
    """Keep the number of units per size in each sub-part, but group neighbours: they are then joined in whole runs."""
    alike: dict[int, Iterator[ShardUnit]] = {}
    every = sorted((unit for units in bins for unit in units), key=lambda unit: (unit.order, unit.path))
    for size in {unit.size_bytes for unit in every}:
        alike[size] = iter([unit for unit in every if unit.size_bytes == size])
    return tuple(tuple(next(alike[unit.size_bytes]) for unit in units) for units in bins)


def _in_a_row(units: Sequence[ShardUnit], count: int) -> tuple[tuple[ShardUnit, ...], ...]:
    """Group neighbours, so that a chain of layers crosses between sub-parts as rarely as possible."""
    left = list(units)
    bins: list[tuple[ShardUnit, ...]] = []
    for remaining in range(count, 0, -1):
        target = sum(unit.size_bytes for unit in left) / remaining
        taken = 1
        while remaining > 1 and len(left) - taken >= remaining:
            now = sum(unit.size_bytes for unit in left[:taken])
            if now + left[taken].size_bytes / 2 > target:
                break
            taken += 1
        taken = len(left) if remaining == 1 else taken
        bins.append(tuple(left[:taken]))
        left = left[taken:]
    return tuple(bins)


def _dealing_order(units: Sequence[ShardUnit]) -> list[ShardUnit]:
    """Return tables by descending size; layers, which depend on each other, in the program's order."""
    if any(unit.is_table for unit in units):
        return sorted(units, key=lambda unit: (-unit.size_bytes, unit.order, unit.path))
    return list(units)


def _nothing_to_deal(field: str) -> InvalidInput:
    return InvalidInput(
        f"{field}: the part holds no weights, so there is nothing to deal out; leave shard out", field=field
    )
