"""Calls about the audit."""

import json
from collections.abc import Iterator, Mapping
from datetime import datetime
from typing import Any

from ipnext.client.connection import Connection
from ipnext.client.lists import Listing, params_of
from ipnext.errors import Unavailable
from ipnext.model.access.audit import AuditEntry, AuditHead, Outcome

EXPORTED_AT_ONCE = 500
"""Entries of the audit."""


class AuditCalls(Connection):
    """Entries of the audit."""

    def audit(
        self,
        *,
        who: str | None = None,
        action: str | None = None,
        about: str | None = None,
        outcome: Outcome | None = None,
        since: datetime | None = None,
        limit: int | None = 100,
    ) -> Listing[AuditEntry]:
        """List the audit, newest first.

        `who`: id or name of a principal; `action`: one, or `models.*`; `about`: an object or model.
        """
        at = None if since is None else since.isoformat()
        given = {"who": who, "action": action, "object": about, "outcome": outcome, "since": at}
        return self._list("/v1/audit", AuditEntry, limit, **given)

    def audit_head(self) -> AuditHead:
        """Return sequence and hash of the newest audit entry.

        An anchor for later verifications, if it is kept elsewhere.
        """
        return self._get("/v1/audit/head", AuditHead)

    def export_audit(self, *, after: int = 0) -> Iterator[Mapping[str, Any]]:
        """Yield the entries in the order of the chain, for `ipnext.model.access.audit_chain.verify`."""
        following: str | None = str(after)
        while following is not None:
            params = params_of(after=following, limit=EXPORTED_AT_ONCE, oldestFirst=True)
            page = json.loads(self._retry(Unavailable, self._send, "GET", "/v1/audit", params=params))
            yield from page["items"]
            following = page.get("next")
