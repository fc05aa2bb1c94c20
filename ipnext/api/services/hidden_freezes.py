"""Freezes as principals see them that may see the models of only some owners.

The texts of a freeze are free, so they may name models of all owners.
"""

from collections.abc import Collection, Iterator, Sequence
from fnmatch import fnmatchcase
from typing import Final

from ipnext.api.services.hidden_fields import HIDDEN, Visible
from ipnext.model.manifest.freeze import FreezeManifest, FreezeScope
from ipnext.model.metadata import Metadata
from ipnext.store.operations.change_scope import find_touched_regions
from ipnext.store.repository import Repository

READ_AT_ONCE: Final = 200
"""Models."""


class VisibleModels:
    """The models of the visible owners, which freezes may bind; what is read is kept for all freezes."""

    def __init__(self, unit: Repository, owners: frozenset[str]) -> None:
        self._unit, self.owners = unit, owners
        self.owner_of = unit.owners_of(unit.names_of_owners(owners))
        """Model -> its owner; read also if the freeze is not there, so that the queries tell nothing."""
        self._touched: dict[str, frozenset[str]] = {}

    def is_bound(self, scope: FreezeScope) -> bool:
        """Return whether changes of a visible model wait for a freeze of this scope, or of a model applied later."""
        bound = [
            name
            for name, owner in self.owner_of.items()
            if _matches(scope.models, (name,)) and _matches(scope.owners, (owner,))
        ]
        if scope.regions:
            return any(_matches(scope.regions, regions) for regions in self._list_touched(bound))
        return bool(bound) or not scope.models

    def _list_touched(self, models: Sequence[str]) -> Iterator[frozenset[str]]:
        """Yield the regions that changes of each model may touch. Reads in steps: the first model often suffices."""
        for start in range(0, len(models), READ_AT_ONCE):
            some = models[start : start + READ_AT_ONCE]
            unknown = [name for name in some if name not in self._touched]
            self._touched |= find_touched_regions(self._unit, unknown)
            yield from (self._touched[name] for name in some)


def models_in_freezes(unit: Repository, visible: Visible) -> VisibleModels | None:
    """Return the models that freezes are shown for, within the unit of work; None: all."""
    return None if visible is None else VisibleModels(unit, visible)


def redact_freeze(freeze: FreezeManifest, models: VisibleModels | None) -> FreezeManifest | None:
    """Return a freeze without what does not concern visible models; None if it is only for others.

    Its scope has the visible names. Labels, annotations and the text of a calendar are hidden, and the reason unless
    the freeze binds a visible model.
    """
    if models is None:
        return freeze
    scope = _visible_scope(freeze.spec.scope, models)
    if scope is None:
        return None
    metadata = Metadata(name=freeze.name)
    if freeze.metadata.owner in models.owners:
        metadata = Metadata(name=freeze.name, owner=freeze.metadata.owner)
    shown = {
        "scope": scope,
        "reason": freeze.spec.reason if models.is_bound(freeze.spec.scope) else HIDDEN,
        "ics": None if freeze.spec.ics is None else HIDDEN,
    }
    return freeze.model_copy(update={"metadata": metadata, "spec": freeze.spec.model_copy(update=shown)})


def _visible_scope(scope: FreezeScope, models: VisibleModels) -> FreezeScope | None:
    """Return the scope with the patterns that match visible names; None if all of a list match only others."""
    names = tuple(pattern for pattern in scope.models if any(fnmatchcase(name, pattern) for name in models.owner_of))
    owners = tuple(pattern for pattern in scope.owners if any(fnmatchcase(name, pattern) for name in models.owners))
    if (scope.models and not names) or (scope.owners and not owners):
        return None
    return scope.model_copy(update={"models": names, "owners": owners})


def _matches(patterns: Sequence[str], names: Collection[str]) -> bool:
    return not patterns or any(fnmatchcase(name, pattern) for name in names for pattern in patterns)
