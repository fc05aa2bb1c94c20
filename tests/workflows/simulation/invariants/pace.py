"""Pace, gate and stop: how fast a new generation gets traffic, and what ends that."""

from collections import Counter
from collections.abc import Iterable
from typing import Any

from activities.transition import admission as admitting
from tests.workflows.simulation.transitions.walk import WAITS, Command

from .answers import Answers
from .excuses import Excuses
from .observation import count_swapping, find_moving_run, find_sent_generations, find_swapping_wave
from .report import SLACK, Report, Violated


class Pace:
    """The steps of rollouts and failovers."""

    def __init__(self, world: Any, report: Report, excuses: Excuses, answers: Answers) -> None:
        self.world, self.report, self.excuses, self.answers = world, report, excuses, answers
        self.known: dict[str, frozenset[int]] = {}

    def check_step(self, model: str, region: str, before: Any, after: Any) -> None:
        """Pace: the first share of a new generation, and how much of a region's traffic one wave moves."""
        run, rollout = find_moving_run(self.world, model), self.world.journal.records[model].in_force.spec.rollout
        paced = run is not None and run.command.name == "shift_traffic" and not run.command.back
        if not paced or run.change.kind in admitting.AT_ONCE or model in self.excuses.left_behind or not before:
            return
        if region not in self.excuses.demand[model]:
            return
        before = [share for share in before if share.to not in self.world.lost]
        if not before or (region, model) in self.excuses.unanswered:  # nobody answered them: whoever is ready does
            return
        moved = _sum_moved(before, after)
        if model in self.excuses.strained:  # what was sent around may come home at once; no new generation may grow
            moved = _sum(self._new_of(model, after)) - _sum(self._new_of(model, before))
        if moved <= SLACK:
            return
        fresh, swap = _sum(self._new_of(model, after)), find_swapping_wave(self.world, model)
        least = (
            max((part for _, part in count_swapping(model, *swap).values()), default=0.0) if swap is not None else 0.0
        )
        if run.command.index == 0 and fresh > max(rollout.canary, least) + SLACK:
            told = f"{model} in {region}: a new generation starts at {fresh:g}, the canary is {rollout.canary:g}"
            raise Violated("pace", told)
        if moved > max(rollout.max_step, least) + SLACK:
            raise Violated("pace", f"{model} in {region}: {moved:g} of the traffic move, {rollout.max_step:g} may")

    def check_failover(self, model: str, region: str, before: Iterable[Any], stored: Iterable[Any], after: Any) -> None:
        """Users were sent around a lost region: their gateway's shares before, the stored ones of then, and those now.

        What the stored ones send to regions that are left stands in for nothing: a failover knows no other ones.
        """
        before = list(before)
        if all(share.to in self.world.lost for share in before):
            self.excuses.unanswered.add((region, model))
        serving, now = self.world.journal.records[model].serving, self.world.clock.now
        kept, now_sent = Counter[int](), Counter[int]()
        for share in stored:
            kept[share.generation] += share.fraction if share.to not in self.world.lost else 0.0
        for share in after:
            now_sent[share.generation] += share.fraction
        grown = {number for number, fraction in now_sent.items() if fraction > kept[number] + SLACK}
        others = grown - {serving, *find_sent_generations(self.world, model)}
        left = [found for found in self.world.infra.regions.values() if found.name not in self.world.lost]
        ready = [
            found.name for found in left if found.dead_until <= now and self.answers.is_whole(found, model, serving)
        ]
        if others and ready:
            told = f"{model} in {region}: users are sent to {sorted(others)}, {serving} serves and is ready in {ready}"
            raise Violated("I4 lost", told)

    def _new_of(self, model: str, shares: Iterable[Any]) -> list[Any]:
        return [share for share in shares if share.generation not in self.known[model]]

    def check_gate(self, wave: Any, *, errors: int, rate: float, passed: bool) -> None:
        """A generation that answers badly does not pass."""
        if passed and errors / 200 > rate:
            raise Violated("gate", f"{wave.model} wave {wave.index}: {errors} errors of 200 pass")

    def check_command(self, run: Any, command: Command) -> None:
        """A run that was asked to stop begins no further wave; it begins with what serves being known."""
        if command.name == "shift_traffic":
            self.excuses.abandoned.pop(run.change.model, None)
        else:
            self.excuses.unanswered = {found for found in self.excuses.unanswered if found[1] != run.change.model}
        if command.back:
            return
        if run.stops and command.name in {"ensure_capacity", "shift_traffic", *WAITS}:
            self.report.breach(
                "stop", f"{run.name} was asked to stop and begins {command.name} of wave {command.index + 1}"
            )
        if command.index == 0 and command.name == "ensure_capacity":
            self.known[run.change.model] = find_sent_generations(self.world, run.change.model)


def _sum_moved(before: Iterable[Any], after: Iterable[Any]) -> float:
    """How much of the requests is answered elsewhere, or by another generation."""
    then = {(share.to, share.generation): share.fraction for share in before}
    return sum(max(0.0, s.fraction - then.get((s.to, s.generation), 0.0)) for s in after)


def _sum(shares: Iterable[Any]) -> float:
    """The fraction of the requests that is sent by shares."""
    return float(sum(share.fraction for share in shares))
