"""A wave of a stored transition for an activity: its target state, the regions that it counts on, and its obstacles."""

from collections.abc import Iterable
from dataclasses import dataclass, replace

from activities.state.desired import DesiredFacts, read_facts
from activities.state.facts import generations_in
from activities.state.restored import restoring
from activities.state.serving_basis import go_by_what_serves
from activities.state.wave_state import (
    ModelWaveState,
    Phase,
    peak,
    state_at,
    state_back,
    state_undone,
    swaps,
    wave_target,
)
from activities.transition.hot_swap import while_swapped
from activities.transition.revert import find_changed, find_needed, find_unfreed
from activities.transition.scale_down import stray
from ipnext.model.deployment.deployment import Deployment
from ipnext.model.deployment.route_table import RouteTable
from ipnext.model.lifecycle.changes.transition_run import WaveInput, WaveResult
from ipnext.model.lifecycle.failure_cause import Place
from ipnext.model.lifecycle.status import Reason
from ipnext.model.planning.transition import Transition
from ipnext.store.records import TransitionRecord
from ipnext.store.repository import Repository


@dataclass(frozen=True)
class WaveContext:
    """A wave at one of its phases, forward or in a revert."""

    wave: WaveInput
    record: TransitionRecord
    facts: DesiredFacts
    state: ModelWaveState
    """Target state of the phase."""
    brings_manifest: bool = False
    """True if the change brings a manifest, by which any replica set or route table may have changed."""

    @classmethod
    def read(cls, repository: Repository, wave: WaveInput, phase: Phase) -> "WaveContext":
        """Read the wave. Raises NotFound if the transition is not stored."""
        record = repository.transition(wave.transition_id)
        go_by_what_serves(repository, wave.model, record.change_id)
        planned = {item.region: item.qps for item in record.transition.demand}
        named = generations_in(record.transition)
        facts = replace(read_facts(repository, wave.model, wave.generation, named=named), planned_demand=planned)
        former = repository.model(wave.model).former
        brings_manifest = former is not None and former.change_id == record.change_id
        if former is not None and not brings_manifest:
            facts = replace(facts, rolled_out=None)
        before = repository.state_before(wave.transition_id) if wave.back else None
        if before is not None:
            facts = restoring(facts, before)
        return cls(wave, record, facts, _state(record.transition, wave, phase), brings_manifest)

    @property
    def transition(self) -> Transition:
        """The planned transition."""
        return self.record.transition

    @property
    def final_state(self) -> ModelWaveState:
        """State that the wave leaves, forward or in a revert."""
        return _state(self.transition, self.wave, "released")

    @property
    def origin(self) -> ModelWaveState:
        """Target state of a revert."""
        return state_undone(self.transition, self.wave.model, 0, "released")

    @property
    def is_last(self) -> bool:
        """True if nothing follows: the last wave, a revert in one step, or the first wave reverted."""
        if self.wave.back:
            return self.wave.index == 0 or not self.wave.by_waves
        return self.wave.index + 1 == len(self.transition.waves)

    @property
    def is_swapping(self) -> bool:
        """True if processes of the wave are hot swapped."""
        return swaps(self.transition, self.wave.model, self.wave.index)

    @property
    def needed_state(self) -> ModelWaveState:
        """Replicas that the wave waits for.

        Forward: also those of its target that already run; in a revert: those that it leaves.
        """
        if self.wave.back:
            return self.final_state
        return wave_target(self.transition, self.wave.model, self.wave.index, self.wave.generation)

    @property
    def needed_regions(self) -> frozenset[str]:
        """Target regions of the run, and those that it passes through at this moment; none that it only leaves."""
        return self._end.regions | (self.state.regions - self.origin.regions)

    @property
    def uninvolved_regions(self) -> frozenset[str]:
        """In a revert: regions that get neither replicas back nor users of other regions.

        A revert waits for them only while they answer: users elsewhere get their former generation at once.
        """
        if not self.wave.back or self.brings_manifest:
            return frozenset()
        return self._known_regions - find_needed(self.transition, self.wave.model, self._waves_begun)

    @property
    def unchanged_regions(self) -> frozenset[str]:
        """In a revert: regions where the transition has changed neither replicas nor users' shares so far.

        They are no part of the revert while they do not answer.
        """
        if not self.wave.back or self.brings_manifest:
            return frozenset()
        changed = find_changed(self.transition, self.wave.model, self._waves_begun)
        slots = set(self.origin.slots)
        strays = {key.region for key in self.facts.deployments if (key.part, key.region, key.hardware) not in slots}
        return self._known_regions - changed - strays

    @property
    def _known_regions(self) -> frozenset[str]:
        return frozenset({key.region for key in self.facts.deployments} | self.facts.tables.keys())

    @property
    def _waves_begun(self) -> int:
        """Waves that may have begun; all in a revert wave by wave, which may have begun at a later one."""
        return len(self.transition.waves) if self.wave.by_waves else self.wave.index + 1

    @property
    def unproven(self) -> frozenset[tuple[str, int]]:
        """On the way forward: (region, generation) of the origin whose replicas may never have started.

        In a revert, users wait until the replicas that are to answer them are ready.
        """
        if self.wave.back:
            return frozenset()
        return find_unproven(self.origin, self.facts.tables.values(), self.wave.generation)

    @property
    def may_drop_strays(self) -> bool:
        """True if replica sets that answer no users and that no wave knows go before anything is added.

        That is so on the way forward, and in a revert of the first wave, before which they may not have gone. A revert
        that counts on a lost region keeps the rest.
        """
        if not self.wave.back:
            return True
        return self.wave.index == 0 and not self.facts.lost & self.needed_regions

    @property
    def unfreed_regions(self) -> frozenset[str]:
        """In a revert wave by wave: regions that could not be reverted so far, and stay as they are."""
        if not (self.wave.back and self.wave.by_waves):
            return frozenset()
        facts, slots = self.facts, peak(self.transition, self.wave.model)
        meanwhile = while_swapped(self.transition, self.wave.model, self.wave.index)
        deployments, tables = facts.deployments.values(), facts.tables.values()
        return find_unfreed(self.state, deployments, tables, slots.keys(), meanwhile=meanwhile) - facts.lost

    @property
    def stuck(self) -> WaveResult | None:
        """Reason why a run that targets a lost region is reverted; None if it continues.

        It is reverted if the wave counts on capacity that must be spared, or if a generation that never served would
        run in lost regions only: it would count as serving though no host has loaded it.
        """
        facts = self.facts
        lost = facts.lost & self.needed_regions
        if self.wave.back or not lost:
            return None
        if self._is_untried and self._end.regions <= lost:
            message = f"generation {self.wave.generation} would run in {', '.join(sorted(lost))} only, which is lost"
            return WaveResult(
                ok=False, reason=Reason.REGION_UNREACHABLE, message=message, place=Place(region=min(lost))
            )
        slots = peak(self.transition, self.wave.model)
        kept = find_unfreed(self.state, facts.deployments.values(), (), slots.keys()) - facts.lost
        if not kept:
            return None
        message = f"on its way to {min(lost)}, which is lost; {', '.join(sorted(kept))} keeps what answers there"
        place = Place(region=min(lost))
        return WaveResult(ok=False, reason=Reason.REGION_UNREACHABLE, message=message, place=place)

    @property
    def _is_untried(self) -> bool:
        """True if the generation has never served."""
        generation = self.facts.generations.get(self.wave.generation)
        return generation is not None and generation.serving_at is None

    @property
    def _end(self) -> ModelWaveState:
        """Target state of the run."""
        if self.wave.back:
            return self.origin
        return state_at(self.transition, self.wave.model, len(self.transition.waves) - 1, "released")


def _state(transition: Transition, wave: WaveInput, phase: Phase) -> ModelWaveState:
    find = (state_undone if wave.by_waves else state_back) if wave.back else state_at
    return find(transition, wave.model, wave.index, phase)


def find_unproven(origin: ModelWaveState, tables: Iterable[RouteTable], generation: int) -> frozenset[tuple[str, int]]:
    """(Region, generation) of an origin that no stored table sends users to, except those of the target `generation`.

    An earlier change may have left them in a region that was away. Waves wait for replicas of the target, and for those
    that they add.
    """
    sent = {(share.to, share.generation) for table in tables for share in table.shares if share.fraction > 0}
    held = {(region, number) for ((_, region, _), number), count in origin.counts.items() if count}
    return frozenset(found for found in held - sent if found[1] != generation)


def list_routable(reaching: "WaveContext") -> tuple[Deployment, ...]:
    """Return the replica sets that gateways may send to; others may never have started.

    A revert sends them only to the replica sets that it keeps. Otherwise all count but those of an earlier change that
    receive no traffic.
    """
    deployments = reaching.facts.deployments.values()
    if reaching.wave.back:
        slots = reaching.final_state.slots
        return tuple(d for d in deployments if (d.key.part, d.key.region, d.key.hardware) in slots)
    strays = {found.key for found in stray(reaching.facts, reaching.transition)}
    return tuple(d for d in deployments if d.key not in strays)
