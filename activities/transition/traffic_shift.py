"""Applies route tables: in the infrastructure first, then in the store, and not at all if nothing changes.

A table by which a router forgets generations is stored first. So a router knows at least what its stored table says.
"""

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence

from activities.runtime.fence import still_ours
from activities.state.desired import DesiredFacts
from activities.state.drained_fleet import check_unchanged, same
from activities.state.observed import observe
from activities.state.routes.routed_models import merge_served, name_shadow
from activities.state.routes.served_generations import served_generations
from activities.state.wave_state import keep_held_shares
from activities.transition.route_updates import follow_routes
from ipnext.errors import RegionUnreachable, RouteFailed, Unavailable
from ipnext.infra.port import Infrastructure
from ipnext.model.deployment.deployment import Deployment
from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.store.store import Store

Shares = tuple[RouteShare, ...]


class Gateways:
    """The gateways of all regions, as one model's route tables see them. Made for one activity.

    `beat` is called before and after each table; an error that it raises ends the work there.
    """

    def __init__(
        self,
        store: Store,
        infrastructure: Infrastructure,
        facts: DesiredFacts,
        *,
        beat: Callable[[str], None] = lambda _: None,
    ) -> None:
        self._store = store
        self._infrastructure = infrastructure
        self._facts = facts
        self._beat = beat
        self._tables: dict[str, RouteTable] = dict(facts.tables)
        self._followed: dict[str, int] = {}
        self._refusing: frozenset[str] = frozenset()
        """Regions with demand whose users nothing serves, by the shares to apply."""

    def follow(
        self,
        shares: Mapping[str, Shares],
        deployments: Iterable[Deployment],
        *,
        waiting: Collection[str] = (),
        keeping: Collection[str] = (),
        apart: Collection[str] = (),
    ) -> None:
        """Let every region serve its generations, then send the traffic by `shares`, one gateway after the other.

        The order is one in which no region receives more on the way than `deployments` carry, if there is one
        (`activities.transition.route_updates`). No gateway sends a generation to a region whose router does not know it
        yet: if that region is unreachable, the gateway stays as it is. The table that a lost region gets once it is
        restored names no such place. Routers forget a generation last of all, and not before every gateway that names
        it has moved; routers in regions of `keeping` forget nothing. Unreachable regions do not keep the others from
        following. Gateways in `waiting` stay as they are, because their new targets are not ready. Those of `apart`
        need not be reached if their shares stay as stored. A gateway that has applied another table than the stored
        one, with fewer answers, gets its new shares at once.

        Raises:
            RegionUnreachable: a region could not be reached; raised at the end, for the first of them.
            Unavailable: gateways are `waiting`; names one of them.
        """
        states, silent = observe(self._infrastructure, shares.keys() - self._facts.lost, [self._facts.model])
        self._refusing = frozenset(r for r, found in shares.items() if not found and r in self._facts.unmet_rules)
        self._followed = {name: state.routes.get(self._facts.model, 0) for name, state in states.items()}
        held = tuple(deployments)
        served = {region: served_generations(self._facts, region, held) for region in states}
        regaining = [region for region in states if region not in waiting and self._regains(region, shares[region])]
        for region in sorted(states, key=regaining.__contains__):
            at_once = region in regaining and self._are_known(region, shares[region])
            found = shares[region] if at_once else self._shares_now(region)
            self._put(region, found, merge_served(served[region], self._served_now(region)))
        moving = [r for r in states if r not in waiting and all(self._knows(s) for s in shares[r] if s.fraction > 0)]
        staying = [r for r in states if r not in moving and shares[r] != self._shares_now(r)]
        for region, found in self._one_by_one({region: shares[region] for region in moving}, held):
            self._put(region, found, merge_served(served[region], self._served_now(region)))
        needed = self.still_sent(shares) | {
            (share.to, share.generation) for found in shares.values() for share in found
        }
        for region in sorted(states.keys() - set(keeping)):
            kept = tuple(found for found in self._served_now(region) if (region, found.generation) in needed)
            self._put(region, self._shares_now(region), merge_served(served[region], kept), forgets=True)
        for region in sorted((shares.keys() & self._facts.lost).difference(waiting)):
            known = [(share.to, share.generation) for share in shares[region] if self._knows(share)]
            kept = tuple(found for found in self._served_now(region) if (region, found.generation) in needed)
            served_there = merge_served(served_generations(self._facts, region, held), kept)
            self._write(region, keep_held_shares(shares[region], known), served_there)
        stay = {region for region, table in self._tables.items() if table.shares == shares.get(region)}
        silent = tuple(region for region in silent if region in self._tables or region not in self._refusing)
        silent = tuple(region for region in silent if region not in stay.intersection(apart))
        if silent:
            msg = f"region {silent[0]!r} can't be reached, so its gateway does not follow yet"
            raise RegionUnreachable(msg)
        if waits := {*waiting, *staying} - self._facts.lost:
            msg = f"users of {min(waits)!r} stay where they are: their new replicas are not ready yet"
            raise Unavailable(msg)

    def still_sent(self, shares: Mapping[str, Shares]) -> frozenset[tuple[str, int]]:
        """(Region, generation) that gateways still send to if they do not follow `shares` yet."""
        return frozenset(
            (share.to, share.generation)
            for region, table in self._tables.items()
            if table.shares != shares.get(region, table.shares)
            for share in table.shares
            if share.fraction > 0
        )

    def _one_by_one(self, then: Mapping[str, Shares], held: Iterable[Deployment]) -> Sequence[tuple[str, Shares]]:
        """Return the shares to apply in the gateways, in order."""
        now = {region: table.shares for region, table in self._tables.items() if region not in self._facts.lost}
        parts = {number: generation.parts for number, generation in self._facts.generations.items()}
        return follow_routes(now, then, held, demand=self._facts.demand, parts=parts).tables

    def _knows(self, share: RouteShare) -> bool:
        """Check whether the router that a share targets knows its generation."""
        return share.generation in {served.generation for served in self._served_now(share.to)}

    def _regains(self, region: str, shares: Shares) -> bool:
        """Check whether a gateway may answer users by `shares` whom the stored table of its region would drop.

        That is so if the stored table answers fewer of them, and the gateway is ahead of it, by a table that was never
        stored. Or it is behind: it has the table of its return from a disaster, and a run stored a later one for the
        lost region. That counts only if its users stay in their region and no others are sent there: capacity that is
        not shared needs no order of the gateways.
        """
        known = self._tables[region].revision if region in self._tables else self._facts.pending.get(region, 0)
        lost, followed = self._facts.lost, self._followed[region]
        if _answered(self._shares_now(region), lost) >= _answered(shares, lost):
            return False
        return followed > known or (0 < followed < known and self._is_apart(region, shares))

    def _is_apart(self, region: str, shares: Shares) -> bool:
        """Check whether a region's users stay in it by `shares`, and those of other regions are not sent there."""
        others = (share for name, table in self._tables.items() if name != region for share in table.shares)
        return all(share.to == region for share in shares) and not any(
            share.to == region and share.fraction > 0 for share in others
        )

    def _are_known(self, region: str, shares: Shares) -> bool:
        """Check whether routers know the generations that a region is sent to; its own learns with the table."""
        return all(share.to == region or self._knows(share) for share in shares)

    def _shares_now(self, region: str) -> Shares:
        return self._tables[region].shares if region in self._tables else ()

    def _served_now(self, region: str) -> tuple[ServedGeneration, ...]:
        return self._tables[region].served if region in self._tables else ()

    def _put(self, region: str, shares: Shares, served: tuple[ServedGeneration, ...], *, forgets: bool = False) -> None:
        """Apply a table with this content. Its revision is above the stored and the applied one.

        One by which a router `forgets` generations is stored first: no run counts on more than the router knows.
        """
        stored, followed = self._tables.get(region), self._followed[region]
        known = stored.revision if stored else self._facts.pending.get(region, 0)
        revision = max(followed, known) + 1
        table = self._table(region, revision, shares, served)
        if followed == known and self._says(stored, table):
            return
        self._beat(f"region {region} is told its routes")
        if forgets:
            with self._store.begin(self._facts.model) as repository:
                still_ours(repository)
                same(repository, self._facts.lost)
                repository.put_route(table)
            self._tables[region] = table
        check_unchanged(self._store, self._facts.lost)
        self._follow(table)
        self._beat(f"region {region} follows its routes")  # an expired attempt changes nothing any more
        if not forgets:
            with self._store.begin(self._facts.model) as repository:
                still_ours(repository)
                repository.put_route(table)
        self._tables[region], self._followed[region] = table, revision

    def _write(self, region: str, shares: Shares, served: tuple[ServedGeneration, ...]) -> None:
        """Record the table that a lost region gets once it is restored."""
        stored = self._tables.get(region)
        known = stored.revision if stored else self._facts.pending.get(region, 0)
        table = self._table(region, known + 1, shares, served)
        if self._says(stored, table):
            return
        with self._store.begin(self._facts.model) as repository:
            still_ours(repository)
            self._tables[region] = repository.put_route(table)

    def _table(self, region: str, revision: int, shares: Shares, served: tuple[ServedGeneration, ...]) -> RouteTable:
        rules = () if shares else self._facts.unmet_rules.get(region, ())
        table = RouteTable(
            model=self._facts.model,
            region=region,
            revision=revision,
            shares=shares,
            served=served,
            access=self._facts.access,
            unmet_rules=rules,
        )
        return name_shadow(self._facts, table)

    def _says(self, stored: RouteTable | None, table: RouteTable) -> bool:
        """Check whether the stored table has the same content. An empty one is needed only if users are refused."""
        if stored is None:
            return not table.shares and not table.served and table.region not in self._refusing
        return stored == table.model_copy(update={"revision": stored.revision})

    def _follow(self, table: RouteTable) -> None:
        """Apply a table. Raises RouteFailed if the region answers and its gateway does not apply it."""
        try:
            self._infrastructure.route(table)
        except RegionUnreachable:
            raise
        except Unavailable as error:
            msg = f"the gateway of region {table.region!r} does not follow revision {table.revision}: {error.message}"
            raise RouteFailed(msg) from error


def _answered(shares: Shares, lost: Collection[str]) -> float:
    """Return the fraction of users whom shares send to regions that are not lost."""
    return round(sum(share.fraction for share in shares if share.to not in lost), 9)
