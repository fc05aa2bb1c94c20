"""Order of a replan's moves, so that one model takes the units that another one frees: pure functions of units.

A model needs room for its growth before it gives back the units that it leaves (capacity first, traffic after).
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from ipnext.model.planning.plan import CurrentState, Problem
from ipnext.store.records import ModelPlacement

Cell = tuple[str, str]
"""(region, hardware)."""

TOLERANCE = 1e-6

MOST_STAGES = 200
"""Beyond these the rest keeps its order: a model that has no room yet is skipped at its turn."""


@dataclass(frozen=True)
class SupplyMove:
    """Units that one model takes and gives back, by cell."""

    model: str
    grows: Mapping[Cell, float]
    shrinks: Mapping[Cell, float]

    @property
    def net(self) -> float:
        """Units that it takes beyond those that it gives back."""
        return round(sum(self.grows.values()) - sum(self.shrinks.values()), 9)

    @classmethod
    def of(cls, placed: ModelPlacement, now: CurrentState | None) -> "SupplyMove":
        """Compute the move from the running state to the placement, replica set by replica set."""
        units = {(part.part, o.hardware): o.units for part in placed.wishes.parts for o in part.options}
        before = {(r.part, r.region, r.hardware): r.count for r in (now or CurrentState()).replicas}
        after = {(r.part, r.region, r.hardware): r.count for r in placed.replicas}
        grows: dict[Cell, float] = {}
        shrinks: dict[Cell, float] = {}
        for slot in sorted(before.keys() | after.keys()):
            part, region, hardware = slot
            more = (after.get(slot, 0) - before.get(slot, 0)) * units.get((part, hardware), 1.0)
            side = grows if more > 0 else shrinks
            if more:
                side[region, hardware] = side.get((region, hardware), 0.0) + abs(more)
        return cls(placed.model, grows, shrinks)


def free_units(problem: Problem, running: Iterable[CurrentState]) -> dict[Cell, float]:
    """Return the units of each cell that the problem's models leave free now; below 0 if supply was withdrawn."""
    free = {(item.region, item.hardware): item.units for item in problem.supply}
    units = {(m.model, p.part, o.hardware): o.units for m in problem.models for p in m.parts for o in p.options}
    for state in running:
        for row in state.replicas:
            cell = (row.region, row.hardware)
            free[cell] = free.get(cell, 0.0) - row.count * units.get((row.model, row.part, row.hardware), 0.0)
    return free


def fits(move: SupplyMove, free: Mapping[Cell, float]) -> bool:
    """Check whether all units that the move grows by are free."""
    return all(units <= free.get(cell, 0.0) + TOLERANCE for cell, units in move.grows.items())


def move_order(moves: Sequence[SupplyMove], free: Mapping[Cell, float]) -> tuple[str, ...]:
    """Order models in stages: all of one stage fit side by side once the stages before have moved.

    Largest net release first. Models that fit in no order come last, as they are: their transitions report the missing
    supply.
    """
    left, order = dict(free), list[str]()
    pending = sorted(moves, key=lambda move: (move.net, move.model))
    for _ in range(MOST_STAGES):
        stage = list[SupplyMove]()
        for move in pending:
            if fits(move, left):
                stage.append(move)
                for cell, units in move.grows.items():
                    left[cell] = left.get(cell, 0.0) - units
        if not stage:
            break
        order += [move.model for move in stage]
        taken = {move.model for move in stage}
        pending = [move for move in pending if move.model not in taken]
        for move in stage:
            for cell, units in move.shrinks.items():
                left[cell] = left.get(cell, 0.0) + units
    return (*order, *(move.model for move in pending))
