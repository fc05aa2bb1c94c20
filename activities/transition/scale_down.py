"""Releases capacity.

Replica sets that gateways still use stay, the rest goes, in the infrastructure first and then in the store.
"""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

from activities.runtime import lease as pulse
from activities.runtime.deadline import beat
from activities.runtime.fence import still_ours
from activities.state.desired import DesiredFacts
from activities.state.drained_fleet import DrainedFleet, check_unchanged
from activities.state.observed import observe
from activities.state.shadow_sets import add_shadow, shadow_set
from activities.state.wave_state import ModelWaveState, peak
from activities.transition.revert import waiting
from activities.transition.traffic_shift import Gateways
from ipnext.errors import Unavailable
from ipnext.infra.port import Infrastructure
from ipnext.model.deployment.deployment import Deployment, DeploymentKey
from ipnext.model.deployment.route_table import RouteShare
from ipnext.model.planning.transition import Transition
from ipnext.store.store import Store

Shares = Mapping[str, tuple[RouteShare, ...]]


@dataclass(frozen=True, slots=True)
class ReleaseExceptions:
    """Exceptions of a release: users of these regions, and replicas that hold a (region, generation) of these."""

    users: Collection[str] = ()
    needed: frozenset[tuple[str, int]] = frozenset()
    keeping: Collection[str] = ()
    """Regions whose routers forget nothing."""
    apart: Collection[str] = ()
    """Regions that need not be reached if their shares stay as stored."""


class CapacityRelease:
    """Releases a model's capacity.

    Needs the store, the infrastructure, and the model's facts at the start of its activity.
    """

    def __init__(self, store: Store, infrastructure: Infrastructure, facts: DesiredFacts) -> None:
        self._store = store
        self._infrastructure = infrastructure
        self._facts = facts

    def waiting(self, shares: Shares, wanted: Iterable[Deployment]) -> Collection[str]:
        """Return users' regions that stay as they are; none if no shares change, as in most releases."""
        facts = self._facts
        if all(found == facts.tables[origin].shares for origin, found in shares.items() if origin in facts.tables):
            return ()
        states, _ = observe(self._infrastructure, {d.key.region for d in wanted} - facts.lost, [facts.model])
        return waiting(facts, shares, states)

    def shrink(
        self,
        shares: Shares,
        kept: Sequence[Deployment],
        wanted: Sequence[Deployment],
        gone: Sequence[Deployment],
        *,
        left: ReleaseExceptions = ReleaseExceptions(),
    ) -> Unavailable | None:
        """Release everywhere as far as regions are reachable; return the first region that is not as an error.

        Replica sets that an out-of-sync gateway still sends to stay as they are, and so do those in `left`.
        """
        unreachable: Unavailable | None = None
        gateways = Gateways(self._store, self._infrastructure, self._facts, beat=beat)
        try:
            gateways.follow(shares, kept, waiting=left.users, keeping=left.keeping, apart=left.apart)
        except Unavailable as error:
            unreachable = error
        needed = left.needed | gateways.still_sent(shares)
        stored = self._facts.deployments
        kept = [found for found in wanted if not is_needed(stored.get(found.key), needed, found.generations)]
        dropped = [found for found in gone if not is_needed(stored.get(found.key), needed)]
        return self.release(kept, dropped) or unreachable

    def release(self, kept: Sequence[Deployment], dropped: Sequence[Deployment] = ()) -> Unavailable | None:
        """Apply the counts of `kept` and delete `dropped`: in the infrastructure first, then all in one unit of work.

        A replica set that the store no longer names must be gone. A lost region receives its state when it is restored.
        One that was restored since received the state of that moment, so it must be called after all. Nothing is
        released if a region was lost since: its users may have been sent to replicas about to go.

        Returns the last region's error, if any could not be reached; the others are written.
        """
        pulse.still_ours()
        keys = {found.key for found in kept}
        unreachable: Unavailable | None = None
        told: list[Deployment] = []
        for deployment in (*kept, *dropped):
            try:
                self._tell(deployment, keep=deployment.key in keys)
            except Unavailable as error:
                unreachable = error
            else:
                told.append(deployment)
        return (self._write(told, keys) if told else None) or unreachable

    def store(self, added: Sequence[Deployment]) -> None:
        """Store replica sets that are about to be applied."""
        if added:
            with self._store.begin(self._facts.model) as repository:
                still_ours(repository)
                for deployment in added:
                    repository.put_deployment(add_shadow(deployment, self._facts.shadow))

    def _tell(self, deployment: Deployment, *, keep: bool) -> None:
        check_unchanged(self._store, self._facts.lost)
        if deployment.key.region in self._facts.lost:
            return
        left = self._remainder(deployment, keep=keep)
        if left is not None:
            self._infrastructure.apply(left)
        else:
            self._infrastructure.delete(deployment.key)

    def _remainder(self, deployment: Deployment, *, keep: bool) -> Deployment | None:
        """Return what is left of a replica set, with the processes of the model's shadow; None if it ends."""
        shadow = self._facts.shadow
        return add_shadow(deployment, shadow) if keep else shadow_set(deployment.key, shadow)

    def _write(self, told: Iterable[Deployment], kept: Collection[DeploymentKey]) -> Unavailable | None:
        """Record the applied changes.

        An error names a region that was restored meanwhile, whose changes are not recorded.
        """
        returned: Unavailable | None = None
        with self._store.begin(self._facts.model) as repository:
            still_ours(repository)
            back = self._facts.lost - DrainedFleet.of(repository.drains()).lost
            for deployment in told:
                region = deployment.key.region
                if region in back:
                    returned = Unavailable(f"region {region!r} is back, and still holds what was to go")
                elif (left := self._remainder(deployment, keep=deployment.key in kept)) is not None:
                    repository.put_deployment(left)
                else:
                    repository.delete_deployment(deployment.key)
        return returned


class EarlyRelease:
    """Releases units before anything starts in their region. Made for one activity.

    `fewer` are replica sets that shrink; `strays` are those that answer no users and that no wave knows, which end.
    `later` are those that the store gets only then: a region that returns after the run gets all that is stored.
    """

    def __init__(
        self,
        infrastructure: Infrastructure,
        facts: DesiredFacts,
        release: CapacityRelease,
        *,
        fewer: Iterable[Deployment],
        strays: Iterable[Deployment],
        later: Iterable[Deployment],
    ) -> None:
        self._infrastructure = infrastructure
        self._facts = facts
        self._release = release
        self.fewer = list(fewer)
        """Those that have not shrunk yet."""
        self._strays = list(strays)
        self._later = list(later)

    def attempt(self) -> Collection[str]:
        """Release what is left. Return the regions where nothing may start before a further attempt.

        They hold what is to be released, and did not answer.
        """
        held = set[str]()
        for region in sorted({found.key.region for found in self.fewer}):
            there = [found for found in self.fewer if found.key.region == region]
            if self._release.release(there) is None:
                self.fewer = [found for found in self.fewer if found.key.region != region]
            else:
                held.add(region)
        held |= self._end_strays()
        self._release.store([found for found in self._later if found.key.region not in held])
        self._later = [found for found in self._later if found.key.region in held]
        return held

    def _end_strays(self) -> frozenset[str]:
        """End them if every gateway answers and none is ahead of its stored table: one ahead may send anywhere.

        Return the regions that did not let go of them.
        """
        if not self._strays:
            return frozenset()
        held = frozenset(found.key.region for found in self._strays)
        tables, model = self._facts.tables, self._facts.model
        regions = {*(tables.keys() - self._facts.lost), *held}
        states, silent = observe(self._infrastructure, regions, [model])
        known = (name for name in tables if name in states)
        if silent or any(states[name].routes.get(model, 0) > tables[name].revision for name in known):
            return held.intersection(silent)
        if self._release.release((), self._strays) is not None:
            return held
        self._strays = []
        return frozenset()


def shrinking(facts: DesiredFacts, wanted: Iterable[Deployment]) -> tuple[Deployment, ...]:
    """Return the replica sets that shrink, outside lost regions: the region gets the lower count before the store does.

    Other models take the count in the store to be in use.
    """
    stored = facts.deployments
    return tuple(
        found
        for found in wanted
        if found.key.region not in facts.lost
        if found.key in stored and found.replicas < stored[found.key].replicas
    )


def find_delayed(
    wanted: Iterable[Deployment], strays: Iterable[Deployment], final: ModelWaveState | None
) -> list[Deployment]:
    """Return the replica sets that are stored only after the strays of their region have ended: both may not fit.

    The region gets what is stored once it returns, also after the run. In a revert these are only sets with more
    processes than in `final`, the state that it leads to.
    """
    regions = {found.key.region for found in strays}
    return [
        found
        for found in wanted
        if found.key.region in regions
        if final is None or found.replicas > final.replicas((found.key.part, found.key.region, found.key.hardware))
    ]


def find_leftovers(facts: DesiredFacts, wanted: Sequence[Deployment]) -> list[Deployment]:
    """Return stored replica sets that are not among the wanted ones."""
    keys = {deployment.key for deployment in wanted}
    return [deployment for key, deployment in facts.deployments.items() if key not in keys]


def answers(stored: Deployment | None, needed: Collection[tuple[str, int]]) -> bool:
    """Check whether a replica set holds a generation that is needed in its region."""
    return stored is not None and any((stored.key.region, number) in needed for number in stored.generations)


def is_needed(stored: Deployment | None, needed: Collection[tuple[str, int]], then: Collection[int] = ()) -> bool:
    """Check whether a replica set stays as it is: it holds a generation that is needed in its region.

    The processes of a hot swap may hold another generation than the stored one: a revert stores the former one before
    it reaches the region. Such a set also stays if it would not hold (`then`) a generation that is needed there.
    """
    if answers(stored, needed):
        return True
    leaving = {region for region, number in needed if number not in then}
    return stored is not None and stored.swap and stored.key.region in leaving


def stray(facts: DesiredFacts, transition: Transition) -> list[Deployment]:
    """Return replica sets that answer no users and that the transition does not know: they hold units that it may need.

    Among them are those that were dropped when their region was lost and that were restored with it.
    """
    sent = {(s.to, s.generation) for table in facts.tables.values() for s in table.shares if s.fraction > 0}
    return [
        found
        for found in facts.deployments.values()
        if found.key.region not in facts.lost
        and not answers(found, sent)
        and not is_own_slot(transition, facts.model, found)
    ]


def is_own_slot(transition: Transition, model: str, deployment: Deployment) -> bool:
    """Check whether the transition itself ever held this slot (others are left for the last wave)."""
    key = deployment.key
    return (key.part, key.region, key.hardware) in peak(transition, model)
