"""Calls about change freezes."""

from ipnext.client.connection import Connection
from ipnext.client.lists import Listing, params_of
from ipnext.model.manifest.freeze import FreezeManifest, FreezeNow, FreezeView, Override, OverrideRequest


class FreezeCalls(Connection):
    """Freezes, and the changes that may pass them."""

    def put_freeze(
        self, freeze: FreezeManifest, *, expected_version: int | None = None, dry_run: bool = False
    ) -> FreezeView:
        """Create or replace a freeze. StaleWrite unless `expected_version` (0: none) is in force."""
        params = params_of(expectedVersion=expected_version, dryRun=dry_run)
        return self._put(f"/v1/freezes/{freeze.name}", freeze, FreezeView, params=params)

    def freezes(self, *, limit: int | None = None) -> Listing[FreezeView]:
        """List freezes, by name."""
        return self._list("/v1/freezes", FreezeView, limit)

    def freeze(self, name: str) -> FreezeView:
        """Return one freeze with its next windows. NotFound."""
        return self._get(f"/v1/freezes/{name}", FreezeView)

    def delete_freeze(self, name: str, *, reason: str | None = None, expected_version: int | None = None) -> FreezeView:
        """Lift a freeze: changes that wait for it alone continue at once. The reason is recorded in the audit.

        NotFound; StaleWrite.
        """
        params = params_of(expectedVersion=expected_version, reason=reason)
        return self._call("DELETE", f"/v1/freezes/{name}", FreezeView, params=params, repeatable=False)

    def frozen_now(self, model: str, *, kind: str = "publish") -> FreezeNow:
        """Return whether a freeze would block a change of a model now, until when and why; and when it would next."""
        return self._call("GET", "/v1/freezes/now", FreezeNow, params={"model": model, "kind": kind})

    def override_freezes(self, change_id: str, reason: str) -> Override:
        """Let one change pass every freeze. The reason is recorded in the audit."""
        body = OverrideRequest(reason=reason)
        return self._call("POST", f"/v1/changes/{change_id}/override", Override, body=body)

    def override_check(self, change_id: str, check: str, reason: str) -> Override:
        """Let one change pass a check of its validation. The reason is recorded in the audit and in the report.

        A change that the check has refused is carried out again: `again` is its id. InvalidInput for a check that is
        unknown or safety-critical; Conflict if there is nothing to override.
        """
        body = OverrideRequest(reason=reason, check=check)
        return self._call("POST", f"/v1/changes/{change_id}/override", Override, body=body)
