"""Calls about identities: logins, roles, API keys and tickets."""

from ipnext.client.connection import Connection
from ipnext.client.lists import Listing
from ipnext.client.polling import glance, poll
from ipnext.errors import DeadlineExceeded, Unavailable
from ipnext.model.access.rights import CreatedKey, KeyRequest, KeyView, RevokedKey, SessionView, Ticket
from ipnext.model.access.roles import LoginView, RoleRequest, RoleView
from ipnext.model.wire import decode


class AccessCalls(Connection):
    """The principal of the client, roles, API keys and tickets."""

    def who_am_i(self) -> SessionView:
        """Return the principal of this client. Unauthenticated."""
        return self._get("/v1/sessions/current", SessionView)

    def login_options(self) -> LoginView:
        """Return the login options for users. Needs no credential. NotFound if the API has no identity provider."""
        return decode(LoginView, self._retry(Unavailable, self._send, "GET", "/v1/login", auth=None))

    def grant_role(self, request: RoleRequest) -> RoleView:
        """Bind a role to a group or user of the identity provider.

        The same grant again returns the existing binding.
        """
        return self._call("POST", "/v1/roles", RoleView, body=request)

    def roles(self, *, limit: int | None = 50) -> Listing[RoleView]:
        """List role bindings, newest first."""
        return self._list("/v1/roles", RoleView, limit)

    def revoke_role(self, binding_id: str) -> RoleView:
        """Remove a role binding. NotFound."""
        return self._call("DELETE", f"/v1/roles/{binding_id}", RoleView, repeatable=False)

    def create_key(self, request: KeyRequest) -> CreatedKey:
        """Create an API key; `key` is its text, which the API returns only once.

        Conflict if a valid key has the name.
        """
        return self._call("POST", "/v1/keys", CreatedKey, body=request, repeatable=False)

    def keys(self, *, limit: int | None = 50) -> Listing[KeyView]:
        """List API keys, newest first, revoked ones included; without secrets."""
        return self._list("/v1/keys", KeyView, limit)

    def revoke_key(self, key_id: str, *, wait: bool = False, timeout_seconds: float = 30.0) -> RevokedKey:
        """Revoke an API key and the logins made with it; with `wait`, until no region takes it.

        NotFound; DeadlineExceeded.
        """
        revoked = self._call("DELETE", f"/v1/keys/{key_id}", RevokedKey)
        return self.wait_revoked(key_id, timeout_seconds) if wait and revoked.regions_behind else revoked

    def wait_revoked(self, key_id: str, timeout_seconds: float = 30.0) -> RevokedKey:
        """Wait until every region goes by an access list without a revoked key.

        DeadlineExceeded names those that do not.
        """
        last: RevokedKey | None = None
        for _ in poll(timeout_seconds):
            last = glance(lambda: self._get(f"/v1/keys/{key_id}/revocation", RevokedKey)) or last
            if last is not None and not last.regions_behind:
                return last
        where = "unknown" if last is None else ", ".join(last.regions_behind)
        msg = f"key {key_id} is revoked, and after {timeout_seconds:g} s may still be taken in these regions: {where}"
        raise DeadlineExceeded(msg)

    def make_ticket(self) -> Ticket:
        """Make a ticket that logs a browser in with the grants of this client's key, once."""
        return self._call("POST", "/v1/tickets", Ticket, repeatable=False)
