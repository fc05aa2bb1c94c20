"""I3: no unit runs, or is promised, twice."""

from collections.abc import Mapping
from typing import Any

from activities.state import wave_state as waves
from tests.workflows.simulation.journal import UNDER_WAY, Placement, placed_units

from .observation import is_reverting
from .report import SLACK, Report, Violated


class Supply:
    """Units of all models together."""

    def __init__(self, world: Any, report: Report) -> None:
        self.world, self.report = world, report
        self.overrun: dict[tuple[str, str], bool] = {}
        """Rows in which more runs than there is since a revert."""

    def check(self, row: tuple[str, str], *, rising: bool, grower: str | None = None) -> None:
        """I3: what runs of all models together, whenever it grows."""
        used, most = self.world.infra.units[row], self.world.supply.get(row, 0.0)
        if rising and used > most + SLACK:
            back = self.overrun.get(row, False) or (grower is not None and is_reverting(self.world, grower))
            self.overrun[row] = back
            name = "I3 way back" if back else "I3 supply"
            if self.world.manifests.parts and grower and used - self._unused(grower, row) <= most + SLACK:
                name = "I3 unused"
            self.report.breach(name, f"{row[0]}/{row[1]}: {used:g} units run where {most:g} are")
        elif used <= most + SLACK:
            self.overrun.pop(row, None)

    def _unused(self, model: str, row: tuple[str, str]) -> float:
        """Units of replicas that no wave knows, and that stay while a gateway of the model can't be reached."""
        record = self.world.journal.records[model]
        moving = next((found for found in reversed(record.transitions) if found.state in UNDER_WAY), None)
        away = (r for r in record.tables if r not in self.world.lost and not self.world.infra.reachable(r))
        if moving is None or not any(away):
            return 0.0
        region, known = self.world.infra.regions[row[0]], waves.peak(moving.transition, model)
        return sum(
            len(hosts) * region.wanted[key].units
            for key, hosts in region.sets.items()
            if key.model == model and key.hardware == row[1] and (key.part, key.region, key.hardware) not in known
        )

    def check_plan(self, adopted: Mapping[str, Placement]) -> None:
        """I3: a plan promises no more than there is, wherever what it adopts takes anything."""
        promised = self.world.journal.units_entitled(but="")
        for row in {row for placement in adopted.values() for row in placed_units(placement)}:
            if promised[row] > self.world.supply.get(row, 0.0) + SLACK:
                told = f"{row[0]}/{row[1]}: {promised[row]:g} units are promised of {self.world.supply[row]:g}"
                raise Violated("I3 plan", told)
