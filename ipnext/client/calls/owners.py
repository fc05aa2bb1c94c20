"""Calls about owners and their quotas."""

from collections.abc import Mapping

from ipnext.client.connection import Connection
from ipnext.client.lists import Listing, label_params, params_of
from ipnext.model.access.owner import OwnerManifest, OwnerView


class OwnerCalls(Connection):
    """Owners with their members and quotas."""

    def put_owner(
        self, owner: OwnerManifest, *, expected_version: int | None = None, dry_run: bool = False
    ) -> OwnerView:
        """Create or replace an owner. StaleWrite unless `expected_version` (0: none) is in force."""
        params = params_of(expectedVersion=expected_version, dryRun=dry_run)
        return self._put(f"/v1/owners/{owner.name}", owner, OwnerView, params=params)

    def owners(self, *, limit: int | None = None, labels: Mapping[str, str] | None = None) -> Listing[OwnerView]:
        """List owners with their usage, by name; only those with these labels."""
        return self._list("/v1/owners", OwnerView, limit, **label_params(labels))

    def owner(self, name: str) -> OwnerView:
        """Return one owner with its members, and its usage next to its quotas. NotFound."""
        return self._get(f"/v1/owners/{name}", OwnerView)

    def delete_owner(self, name: str, *, expected_version: int | None = None) -> OwnerView:
        """Delete an owner, its quotas and its members' roles. Conflict while it has models; NotFound; StaleWrite."""
        params = params_of(expectedVersion=expected_version)
        return self._call("DELETE", f"/v1/owners/{name}", OwnerView, params=params, repeatable=False)
