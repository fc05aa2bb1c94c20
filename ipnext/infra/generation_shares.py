"""Shares of a route table that a region can send requests to, for its gateway and its router. Pure functions.

The gateway chooses the generation of V2 requests, whose path names the model; the router that of OpenAI requests, whose
body does.
"""

from collections.abc import Collection, Iterable, Mapping
from typing import Final

from ipnext.model.deployment.route_table import RouteShare, RouteTable
from ipnext.model.deployment.router_table import GenerationShares

NAMED_LIMIT: Final = 20
"""Error texts name at most this many known models, generations or rules."""


def usable_shares(region: str, peers: Collection[str], table: RouteTable) -> list[RouteShare]:
    """Return the shares with traffic whose region can be reached, one for each (region, generation)."""
    sums: dict[tuple[str, int], float] = {}
    for share in table.shares:
        if share.fraction > 0 and (share.to == region or share.to in peers):
            sums[share.to, share.generation] = sums.get((share.to, share.generation), 0.0) + share.fraction
    total = max(1.0, sum(sums.values()))
    return [RouteShare(to=to, generation=number, fraction=part / total) for (to, number), part in sums.items()]


def no_capacity(region: str, table: RouteTable) -> str:
    """Explain why users of `region` are refused: the plan's unmet rules, else a momentary lack of capacity."""
    if table.shares or not table.unmet_rules:
        return f"model {table.model} has no capacity in region {region} at the moment; try again"
    return f"model {table.model} serves no users of region {region}: {some(table.unmet_rules)}"


def openai_choices(region: str, peers: Collection[str], tables: Iterable[RouteTable]) -> tuple[GenerationShares, ...]:
    """Return the shares of all models that may answer OpenAI requests.

    These are models with such an engine, or served elsewhere.
    """
    return OpenAIChoices(region).of(peers, {table.model: table for table in tables})


class OpenAIChoices:
    """Makes the shares of all models that may answer OpenAI requests, each from the former ones.

    A change costs the models that it changes.
    """

    def __init__(self, region: str) -> None:
        self._region = region
        self._peers: frozenset[str] = frozenset()
        self._known: dict[str, tuple[RouteTable, GenerationShares]] = {}

    def of(self, peers: Collection[str], tables: Mapping[str, RouteTable]) -> tuple[GenerationShares, ...]:
        """Return the shares by these tables. A model whose table is the same object keeps its shares."""
        if frozenset(peers) != self._peers:
            self._peers, self._known = frozenset(peers), {}
        generating = (table for _, table in sorted(tables.items()) if may_generate(table))
        self._known = {table.model: self._read_cached(table) for table in generating}
        return tuple(choice for _, choice in self._known.values())

    def _read_cached(self, table: RouteTable) -> tuple[RouteTable, GenerationShares]:
        former = self._known.get(table.model)
        return former if former is not None and former[0] is table else (table, self._build_shares(table))

    def _build_shares(self, table: RouteTable) -> GenerationShares:
        shares = tuple(usable_shares(self._region, self._peers, table))
        refusal = "" if shares else no_capacity(self._region, table)
        return GenerationShares(model=table.model, shares=shares, refusal=refusal, access=table.access)


def may_generate(table: RouteTable) -> bool:
    """Return whether the model may answer OpenAI requests. Of one that is served elsewhere only that region knows."""
    return not table.served or any(served.engines for served in table.served)


def some(names: Iterable[str]) -> str:
    """Join the first names, and count the others."""
    listed = list(names)
    more = f" and {len(listed) - NAMED_LIMIT} more" if len(listed) > NAMED_LIMIT else ""
    return (", ".join(listed[:NAMED_LIMIT]) + more) or "none"
