"""Replica sets of a region as the reconciler compares them, parsed from the store's documents."""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from activities.runtime.single_calls import OF_ONE, describe
from ipnext.model.deployment.deployment import Deployment, DeploymentKey
from ipnext.model.wire import decode


@dataclass(frozen=True)
class DesiredSet:
    """Desired state of one replica set."""

    replicas: int
    generations: frozenset[int]
    own: Mapping[int, int]
    """Generation -> processes that hold nothing else; empty if all generations share processes."""
    shadow: Mapping[int, int] = field(default_factory=dict)
    """Generation that answers no client -> processes, among `replicas`, that hold it alone."""


class ReadSets(NamedTuple):
    """Replica sets, and the models with an unreadable one, with the error."""

    sets: Mapping[DeploymentKey, DesiredSet]
    failed: Mapping[str, str]


class ParsedSets:
    """Replica sets parsed from their documents. A document that a region had in its last pass is not parsed again."""

    def __init__(self) -> None:
        self._known: dict[str, dict[bytes, DesiredSet]] = {}

    def of(self, region: str, documents: Mapping[DeploymentKey, str]) -> ReadSets:
        """Return one for each document; those that the region no longer has are forgotten."""
        before = self._known.get(region, {})
        now, found, failed = dict[bytes, DesiredSet](), dict[DeploymentKey, DesiredSet](), dict[str, str]()
        for key, text in documents.items():
            digest = hashlib.blake2b(text.encode(), digest_size=16).digest()
            try:
                now[digest] = found[key] = before.get(digest) or _parse_set(text)
            except OF_ONE as error:
                failed[key.model] = describe(error)
        self._known[region] = now
        return ReadSets(found, failed)


def _parse_set(text: str) -> DesiredSet:
    found = decode(Deployment, text)
    return DesiredSet(found.replicas, frozenset(found.generations), dict(found.own), dict(found.shadow))
