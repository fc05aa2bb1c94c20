"""The limit of one source's connections to a gateway: one filter chain for each group of addresses. Pure functions.

Envoy limits the connections of a filter chain, and of no address. So addresses are hashed into groups, each with a
chain and a limit of its own: a client takes the connections of its group, and no others. The seed of the hash is
random, so that no client finds out which addresses are in the group of another one.
"""

from dataclasses import dataclass
from typing import Any, Final

from ipnext.infra.envoy.openai_config import type_url as _type

Json = dict[str, Any]

GROUPS: Final = 32
"""Each has a copy of the listener's settings, some 30 kB that Envoy reads at its start. A client shares its group with
one in 32 of the others."""
SEED_BITS: Final = 32
_STAT_PREFIX: Final = "gateway"


@dataclass(frozen=True, kw_only=True)
class SourceLimit:
    """Connections of one address, and of those that share its group."""

    connections: int
    """A further one is closed on arrival."""
    seed: int
    """Decides which addresses share a group; SEED_BITS random bits."""


def grouped(chain: Json, limit: SourceLimit) -> Json:
    """Return the fields of a listener whose connections all have this chain, and are limited by source."""
    chains = [{**chain, "name": _name(group), "filters": [_filter(limit), *chain["filters"]]} for group in _ALL]
    matchers = [_matcher(group, limit.seed) for group in reversed(_ALL[1:])]
    return {
        "filter_chains": chains,
        "filter_chain_matcher": {"matcher_list": {"matchers": matchers}, "on_no_match": _choose(_ALL[0])},
    }


_ALL: Final = tuple(range(GROUPS))


def _name(group: int) -> str:
    return f"group-{group}"


def _filter(limit: SourceLimit) -> Json:
    config = {
        "@type": _type("extensions.filters.network.connection_limit.v3.ConnectionLimit"),
        "stat_prefix": _STAT_PREFIX,
        "max_connections": limit.connections,
    }
    return {"name": "envoy.filters.network.connection_limit", "typed_config": config}


def _matcher(group: int, seed: int) -> Json:
    """Return the matcher of addresses whose hash is this group or a later one: the later ones were asked before."""
    source = _type("extensions.matching.common_inputs.network.v3.SourceIPInput")
    hashing = {
        "@type": _type("extensions.matching.input_matchers.consistent_hashing.v3.ConsistentHashing"),
        "threshold": group,
        "modulo": GROUPS,
        "seed": seed,
    }
    predicate = {
        "input": {"name": "source", "typed_config": {"@type": source}},
        "custom_match": {"name": "hash", "typed_config": hashing},
    }
    return {"predicate": {"single_predicate": predicate}, "on_match": _choose(group)}


def _choose(group: int) -> Json:
    name = {"@type": "type.googleapis.com/google.protobuf.StringValue", "value": _name(group)}
    return {"action": {"name": "group", "typed_config": name}}
