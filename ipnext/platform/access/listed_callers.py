"""Selects the keys and roles that regions need: those that may ask a model which needs a credential.

A region that was taken over learns of no other ones. All regions get the same: a move may bring any model to any
region, and sends requests there within a tenth of a second, before a list for that region alone could be made and sent.
"""

from collections.abc import Collection, Iterable
from typing import NamedTuple

from ipnext.model.access.predictions import CallerKey, CallerRole, ModelAccess
from ipnext.model.access.rights import ANY, Grant


class ListedCallers(NamedTuple):
    """Keys and roles in a list."""

    keys: tuple[CallerKey, ...] = ()
    roles: tuple[CallerRole, ...] = ()

    def of(self, owners: frozenset[str]) -> "ListedCallers":
        """Return those with a role over one of these owners, or over all of them. `*` among the owners: over any."""
        keys = tuple(key for key in self.keys if any(_matters(grant, owners) for grant in key.grants))
        return ListedCallers(keys, tuple(role for role in self.roles if _matters(role.grant, owners)))


def asking_owners(models: Iterable[ModelAccess]) -> frozenset[str]:
    """Return the owners whose keys may ask these models, beside those of `*`; none if no model needs a credential."""
    closed = [one for one in models if not one.access.is_open]
    return frozenset(owner for one in closed for owner in (one.owner, *one.access.callers))


def _matters(grant: Grant, owners: Collection[str]) -> bool:
    """Whether a role may let its holder ask a model of these owners. A role over a region is none over models."""
    return bool(owners) and grant.region == ANY and (grant.owner == ANY or ANY in owners or grant.owner in owners)
