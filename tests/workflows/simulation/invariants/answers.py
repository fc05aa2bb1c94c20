"""I2 and I5: traffic goes to validated generations that are ready, and every request is answered by one of them."""

from typing import Any

from ipnext.model.lifecycle.changes.change import ChangeKind
from tests.workflows.simulation.infrastructure import Region

from .excuses import Excuses
from .observation import find_moving_run, find_swapping_wave, is_ahead, is_out, is_reverting, name_revert_breach
from .report import Report, Violated


class Answers:
    """What users of a model are answered with."""

    def __init__(self, world: Any, report: Report, excuses: Excuses) -> None:
        self.world, self.report, self.excuses = world, report, excuses
        self.sent: dict[tuple[str, str], Any] = {}
        """(Users' region, model) -> the shares that the last look saw."""

    def check(self, model: str, where: str, asked: float) -> None:
        """I2 and I5 of one model. `asked`: the request that is drawn, as a fraction of a gateway's traffic."""
        record = self.world.journal.records[model]
        for origin in self.world.infra.regions.values():
            if is_out(self.world, origin):
                self.sent.pop((origin.name, model), None)
                continue
            passed = 0.0
            self._check_dropped(origin, model, where)
            for share in origin.routes.get(model, (0, ()))[1]:
                if share.fraction <= 0:
                    continue
                if not record.generations[share.generation].validated:
                    raise Violated("I2 validated", f"{where}: {origin.name} sends to generation {share.generation}")
                whole = self.is_whole(self.world.infra.regions[share.to], model, share.generation)
                if not (whole or self._waits(self.world.infra.regions[share.to], model, share.generation)):
                    mine = passed <= asked < passed + share.fraction
                    name = "I5 answer" if mine else "I2 ready"
                    if origin.name not in self.excuses.demand.get(model, {}):
                        name = "I2 undemanded"
                    elif is_reverting(self.world, model):
                        name = name_revert_breach(self.world, model)
                    elif self.world.ends and is_ahead(self.world, origin, model):
                        name = "I1 ahead"
                    told = (
                        f"{where}: {origin.name} sends {model} generation {share.generation} to {share.to}, "
                        "not whole there"
                    )
                    self.report.breach(name, told)
                passed += share.fraction

    def _check_dropped(self, origin: Region, model: str, where: str) -> None:
        """I5: of users who are answered not all lose their answers as long as everything that gave them does."""
        before, now = self.sent.get((origin.name, model), ()), origin.routes.get(model, (0, ()))[1]
        self.sent[origin.name, model] = now
        demand = {item.region for item in self.world.journal.records[model].in_force.spec.demand}
        if any(share.fraction > 0 for share in now) or origin.name not in demand.intersection(
            self.excuses.demand.get(model, {})
        ):
            return
        sent = [share for share in before if share.fraction > 0]
        if not sent or self._ends_for(model, origin.name):
            return
        regions = self.world.infra.regions
        if all(
            not is_out(self.world, regions[s.to]) and self.is_whole(regions[s.to], model, s.generation) for s in sent
        ):
            self.report.breach(
                "I5 dropped", f"{where}: users of {origin.name} were answered, and {model} has no answer now"
            )

    def _ends_for(self, model: str, origin: str) -> bool:
        """Return whether no region has to answer these users.

        The model is retired, its first generation is reverted, or none has served and it is withdrawn.
        """
        run, record = find_moving_run(self.world, model), self.world.journal.records[model]
        if run is None:
            return record.serving is None and all(change.state.final for change in record.changes)
        if run.change.kind == ChangeKind.RETIRE:
            return True
        moving = self.world.journal.find_transition(run.change.id)
        return moving is not None and origin not in {share.origin for share in moving.transition.origin.traffic}

    def _waits(self, region: Region, model: str, generation: int) -> bool:
        """Whether requests for a generation are answered with another one, or wait for one, where processes go over.

        In the wave at hand, or left so by a revert, or one that was given up; the region's router has to know both.
        They also wait for processes that fetch, if a restarted process reached its generation before the others.
        """
        served = region.served.get(model, frozenset())
        goes_over = (
            find_swapping_wave(self.world, model)
            or model in self.excuses.left_behind
            or model in self.excuses.abandoned
        )
        if not goes_over or generation not in served:
            return False
        hosts = [host for key, hosts in region.sets.items() if key.model == model for host in hosts]
        mixed = any(host.apart for host in hosts)
        coming = {host.over_to for host in hosts if host.goes_over and (mixed or not host.ready)}
        return any(number in coming or self.is_whole(region, model, number) for number in served)

    def is_whole(self, region: Region, model: str, generation: int) -> bool:
        """Whether a region can answer with a generation.

        Its router knows it, and each part has a host that is ready.
        """
        now = self.world.clock.now
        if region.dead_until > now:
            return True
        if generation not in region.served.get(model, frozenset()):
            return False
        able, parts = region.able(model, now), self.world.journal.records[model].generations[generation].parts
        absent = [part for part in parts if (part, generation) not in able]
        return all((region.name, part, generation) in self.excuses.lacking.get(model, {}) for part in absent)
