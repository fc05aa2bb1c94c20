"""I1: what gateways send is carried, in every region."""

from collections import defaultdict
from collections.abc import Iterable, Mapping
from typing import Any

from ipnext.model.planning.transition import Dip

from .excuses import Excuses, Place
from .observation import is_out, is_reverting, name_revert_breach, sum_swapping
from .report import SLACK, Report


class Capacity:
    """What each generation can carry, and what it may lack."""

    def __init__(self, world: Any, report: Report, excuses: Excuses) -> None:
        self.world, self.report, self.excuses = world, report, excuses

    def begin(
        self,
        model: str,
        dips: Iterable[Dip] = (),
        *,
        rollback: bool = False,
        manifest: Any | None = None,
        passing: frozenset[str] = frozenset(),
    ) -> None:
        """A transition is planned for the demand of now; what is short at its beginning may stay so, and what it dips.

        A rollback and a repair go back at the capacity that is there: what one generation lacks goes along to the
        other, and what processes lack that all generations share.
        """
        self.excuses.passing[model] = passing
        self.excuses.dips[model] = {(dip.region, dip.part): dip.fraction for dip in dips}
        manifest = manifest or self.world.journal.records[model].in_force
        self.excuses.demand[model] = {item.region: item.qps for item in manifest.spec.demand}
        loads = self._loads(model, faults=False)
        self.excuses.strained.discard(model)
        self.excuses.settle(model)
        lacking = {place: load - able for place, (load, able) in loads.items() if load > able}
        short = _short(loads)
        for (region, part, generation), (load, able) in loads.items():
            # a process that holds nothing of what is sent carries none of it
            if generation is None and short[region, part] > 0:
                lacking[region, part, None] = max(load - able, short[region, part])
        along = {place: max(missing, lacking.get((*place, None), 0.0)) for place, missing in short.items()}
        self.excuses.lacking[model], self.excuses.going_along[model] = lacking, along if rollback else {}

    def give_up(self, model: str) -> None:
        """A revert was ended from outside until no other run took it over.

        Its processes may stay where its wave left them. Until the processes of the next transition have all been told:
        it begins with them.
        """
        lacking, over = self.excuses.lacking.get(model, {}), sum_swapping(self.world, model)
        if over:
            self.excuses.abandoned[model] = {place: _at(lacking, place) + qps for place, qps in over.items()}

    def check(self, model: str, where: str, *, between: bool) -> None:
        """I1: what is sent is carried."""
        if self.world.journal.records[model].refresh == "swap":
            self._check_apart(model, where, between=between)
            return
        excused, dips = self.excuses.lacking.get(model, {}), self.excuses.dips.get(model, {})
        loads = self._loads(model)
        for (region, part, generation), (load, able) in loads.items():
            if load <= able + SLACK:
                continue
            along = self._along(model, (region, part, generation), loads)
            lacked = max(excused.get((region, part, generation), 0.0), along)
            if load * (1 - dips.get((region, part), 0.0)) > able + lacked + SLACK:
                seen = (region, part, generation, load, able)
                which = "all generations" if generation is None else f"generation {generation}"
                told = f"{where}: {model}/{part} in {region}: {load:g} requests/s to {which}, which carries {able:g}"
                self._breach(model, seen, told, between=between)

    def _along(self, model: str, place: Place, loads: Mapping[Place, tuple[float, float]]) -> float:
        """What a generation may lack as its model was short, or all of a region that is passed through; never more."""
        (region, part, generation), short = place, _short(loads)
        along, passing = self.excuses.going_along.get(model, {}), self.excuses.passing.get(model, frozenset())
        regions = {region, *passing, *(name for name, _ in along)} if region in passing else {region}
        load, able = loads[place]
        others = 0.0 if generation is None else short[region, part] - (load - able)
        others += sum(short.get((name, part), 0.0) for name in regions - {region})
        return sum(along.get((name, part), 0.0) for name in regions) - others

    def _check_apart(self, model: str, where: str, *, between: bool) -> None:
        """I1 where processes go over: what is short goes along with them, so it counts for all generations together.

        So much more may be missing as those carry that go over in the wave at hand, until its traffic has moved.
        """
        lacking, dips, loads = self.excuses.lacking.get(model, {}), self.excuses.dips.get(model, {}), self._loads(model)
        whole: dict[tuple[str, str], float] = defaultdict(float)
        missing: dict[tuple[str, str], float] = defaultdict(float)
        for (region, part, _), (load, able) in loads.items():
            whole[region, part] += load
            missing[region, part] += max(0.0, load * (1 - dips.get((region, part), 0.0)) - able)
        over, abandoned = sum_swapping(self.world, model), self.excuses.abandoned.get(model, {})
        for place, short in missing.items():
            may = max(_at(lacking, place) + over.get(place, 0.0), abandoned.get(place, 0.0))
            if short <= may + SLACK:
                continue
            seen = (*place, short)
            told = (
                f"{where}: {model}/{place[1]} in {place[0]}: {short:g} of {whole[place]:g} requests/s are "
                f"missing, {may:g} may"
            )
            self._breach(model, seen, told, between=between)

    def _breach(self, model: str, seen: tuple[Any, ...], told: str, *, between: bool) -> None:
        """Report a shortage. One from between two route updates has a name of its own until all gateways follow."""
        halfway = self.excuses.halfway
        if (between and model in self.excuses.crossing) or seen in halfway.get(model, ()):
            halfway.setdefault(model, set()).add(seen)
            name = "I1 between"
        else:
            name = name_revert_breach(self.world, model) if is_reverting(self.world, model) else "I1 capacity"
        self.report.breach(name, told)

    def _loads(self, model: str, *, faults: bool = True) -> dict[Place, tuple[float, float]]:
        """Place -> requests/s that are sent there, and that its hosts carry."""
        record, regions, now = self.world.journal.records[model], self.world.infra.regions, self.world.clock.now
        load: dict[Place, float] = defaultdict(float)
        together = record.refresh == "in_place"
        for name, qps in self.excuses.demand.get(model, {}).items():
            origin = regions[name]
            if faults and is_out(self.world, origin):
                continue
            for share in origin.routes.get(model, (0, ()))[1]:
                if share.fraction <= 0 or (faults and regions[share.to].dead_until > now):
                    continue
                for part in record.generations[share.generation].parts:
                    load[share.to, part, share.generation] += qps * share.fraction
                    if together:
                        load[share.to, part, None] += qps * share.fraction
        able = {name: regions[name].able(model, now) for name in {place[0] for place in load}}
        return {place: (qps, able[place[0]].get(place[1:], 0.0)) for place, qps in load.items()}


def _at(lacking: Mapping[Place, float], place: tuple[str, str]) -> float:
    """Requests/s that all generations of a part lack in a region."""
    return sum(qps for (*found, _), qps in lacking.items() if tuple(found) == place)


def _short(loads: Mapping[Place, tuple[float, float]]) -> dict[tuple[str, str], float]:
    """(Region, part) -> requests/s that its generations lack together."""
    found: dict[tuple[str, str], float] = defaultdict(float)
    for (region, part, generation), (load, able) in loads.items():
        if generation is not None:
            found[region, part] += max(0.0, load - able)
    return found
