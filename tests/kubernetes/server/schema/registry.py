"""Resources by their place in the API: Kubernetes' own and those of CustomResourceDefinitions."""

import functools
from collections.abc import Iterator, Mapping
from typing import Any

from tests.kubernetes.server.schema.resources import Resource, core_resources, custom_resources

built_in_resources = functools.cache(core_resources)


class Registry:
    """What one API server serves now."""

    def __init__(self) -> None:
        self._resources = {(one.group, one.version, one.plural): one for one in built_in_resources()}

    def __iter__(self) -> Iterator[Resource]:
        return iter(self._resources.values())

    def find(self, group: str, version: str, plural: str) -> Resource | None:
        """Return the resource that is served there."""
        return self._resources.get((group, version, plural))

    def of_kind(self, api_version: str, kind: str) -> Resource | None:
        """Return the resource of a kind, as owner references name it."""
        return next((one for one in self if (one.api_version, one.kind) == (api_version, kind)), None)

    def versions(self) -> Mapping[str, list[str]]:
        """Return the versions of each named group."""
        found: dict[str, list[str]] = {}
        for one in self:
            if one.group and one.version not in found.setdefault(one.group, []):
                found[one.group].append(one.version)
        return found

    def define(self, definition: Mapping[str, Any]) -> None:
        """Serve what a CustomResourceDefinition defines, in place of what it defined before."""
        self.withdraw(definition)
        self._resources |= {(one.group, one.version, one.plural): one for one in custom_resources(definition)}

    def withdraw(self, definition: Mapping[str, Any]) -> None:
        """Stop serving it."""
        place = definition["spec"]["group"], definition["spec"]["names"]["plural"]
        self._resources = {key: one for key, one in self._resources.items() if (key[0], key[2]) != place}
