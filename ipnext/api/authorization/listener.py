"""Principals that follow the stream of events."""

import dataclasses

from ipnext.api.authorization.access import Access
from ipnext.api.authorization.caller import visible_owners
from ipnext.api.requests.slots import holder_of
from ipnext.api.requests.stream import StreamListener
from ipnext.errors import Unavailable
from ipnext.model.access.rights import Principal


@dataclasses.dataclass(frozen=True, slots=True)
class _Listening:
    """A principal that follows the stream of events."""

    access: Access
    principal: Principal

    @property
    def holder(self) -> str | None:
        """Its principal, if there is one."""
        return holder_of(self.principal)

    def sees(self, owner: str | None) -> bool:
        """Return whether it may read an owner's models.

        Events of the fleet may name any model: only principals that see all may read them.
        """
        if owner:
            return self.access.can_see(self.principal, owner)
        return owner is None or self.access.sees_all(self.principal)

    async def visible(self) -> frozenset[str] | None:
        """Return the owners whose models it sees; None: all."""
        return await visible_owners(self.access, self.principal)

    def may_listen(self) -> bool:
        """Return whether its credential is still valid. True while the store does not answer."""
        try:
            return not self.access.required or self.access.is_still_valid(self.principal)
        except Unavailable:
            return True


def listener_of(access: Access, principal: Principal) -> StreamListener:
    """Return a principal as a listener of the stream."""
    return _Listening(access, principal)
