"""All invariants of a history, and the state of each subject."""

from typing import Any

from .answers import Answers
from .capacity import Capacity
from .changes import Changes
from .excuses import Excuses
from .manifests import ManifestUse
from .observation import is_out, sum_swapping
from .pace import Pace
from .report import Report, Violated
from .rest import check_rest
from .supply import Supply


class Invariants:
    """All of them. The first that does not hold ends the history."""

    def __init__(self, world: Any) -> None:
        self.world = world
        self.report, self.excuses = Report(world), Excuses()
        self.capacity = Capacity(world, self.report, self.excuses)
        self.answers = Answers(world, self.report, self.excuses)
        self.supply = Supply(world, self.report)
        self.pace = Pace(world, self.report, self.excuses, self.answers)
        self.changes, self.manifests = Changes(world, self.excuses), ManifestUse(world)
        self.looks = 0
        self.held: dict[str, Any] = {}
        """Model -> what a look at it saw that found nothing: while that is the same, another one finds nothing
        either."""

    def look(self, model: str, where: str, *, between: bool = False) -> None:
        """I1, I2 and I5 of one model. `between`: some of its gateways have moved, others not yet."""
        self.looks += 1
        seen, breaches = self._observe(model), self.report.breaches
        asked = self.world.draws.random()
        if self.held.get(model) == seen:
            return
        self.answers.check(model, where, asked)
        if not self.excuses.is_excused(model):
            self.capacity.check(model, where, between=between)
        if self.report.breaches == breaches:
            self.held[model] = seen

    def _observe(self, model: str) -> tuple[Any, ...]:
        """All that the outcome of a look depends on; which generations are validated, and their parts, only grow."""
        now = self.world.clock.now
        of_model = [
            (is_out(self.world, r), r.dead_until > now, r.routes.get(model), r.served.get(model), r.able(model, now))
            for r in self.world.infra.regions.values()
        ]
        excused = self.excuses.is_excused(model)
        return (
            excused,
            self.excuses.demand.get(model),
            self.excuses.lacking.get(model),
            self.excuses.going_along.get(model),
            self.excuses.passing.get(model),
            self.excuses.dips.get(model),
            sum_swapping(self.world, model),
            self.excuses.abandoned.get(model),
            of_model,
        )

    def at_end(self) -> None:
        """Every change has ended, every run too, and nothing runs that no one knows of."""
        for model, record in self.world.journal.records.items():
            for change in record.changes:
                if not change.state.final:
                    raise Violated("I4 lost", f"{change.kind} {change.id} is {change.state} for ever")
            self.changes.check_newest(model, record)
            self.manifests.check_rest(model, record)
            self.look(model, "at the end")
            for region in self.world.infra.regions.values():
                orphans = [
                    k for k, hosts in region.sets.items() if k.model == model and hosts and k not in record.deployments
                ]
                if orphans:
                    raise Violated("I6 orphan", f"{orphans[0]} runs and is not known")
            if self.world.ends:
                check_rest(self.world, self.report, model)
        for entity in self.world.entities.values():
            if entity.busy or entity.queue:
                raise Violated("I6 end", f"{entity.model} still runs {entity.running}")
