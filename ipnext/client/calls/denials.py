"""Calls about the deny-list."""

from ipnext.client.connection import Connection
from ipnext.client.lists import Listing, params_of
from ipnext.model.api.denials import DenialRequest, DenialView


class DenialCalls(Connection):
    """Digests that no model may serve."""

    def deny(self, digest: str, reason: str) -> DenialView:
        """Deny a snapshot, all that have a file, or all of an image; models that serve one go back.

        A digest that is denied already keeps its reason. InvalidInput, Forbidden.
        """
        return self._put(f"/v1/denials/{digest}", DenialRequest(reason=reason), DenialView, params={})

    def undeny(self, digest: str, *, reason: str | None = None) -> DenialView:
        """End a denial, and return it. The reason is recorded in the audit. NotFound."""
        params = params_of(reason=reason)
        return self._call("DELETE", f"/v1/denials/{digest}", DenialView, params=params, repeatable=False)

    def denials(self, *, limit: int | None = None) -> Listing[DenialView]:
        """List denials, newest first, without their snapshots."""
        return self._list("/v1/denials", DenialView, limit)

    def denial(self, digest: str) -> DenialView:
        """Return one denial, with the snapshots that it covers. NotFound."""
        return self._get(f"/v1/denials/{digest}", DenialView)
