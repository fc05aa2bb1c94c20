"""The principal of this request, for the audit. Follows the request into its threads."""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import Any, Final, Protocol
from uuid import uuid4

from ipnext.model.access.rights import Principal

Check = Callable[[Principal, Any], Mapping[str, str]]
"""A check of the request's policy for a principal, in a unit of the store.

Returns fields of `RequestAuthority` that it found.
"""


def _no_operation() -> str:
    return ""


@dataclass(slots=True)
class Trail:
    """A request's audit entries so far. One for each request; its threads share it."""

    operation: Callable[[], str] = _no_operation
    """Method and path of the request; known once it was routed."""
    request_id: str = field(default_factory=lambda: uuid4().hex)
    units: int = 0
    """Units of work that were begun on behalf of the request."""
    asked: bool = False
    """Whether an entry was committed before an action outside the store: later units belong to it."""
    only_reads: bool = False
    """Whether the request changes nothing, whatever its method."""
    checks: list[Check] = field(default_factory=list)
    """The checks that permitted the request. They are repeated in the units of work that record it."""


class Authority(Protocol):
    """Decides whether a principal may still act."""

    def prove_in(self, who: "RequestAuthority", unit: Any) -> "RequestAuthority":
        """Return `who` with its present grants, policy and owner, as a unit of the store (`Repository`) has them.

        Raises Unauthenticated, Forbidden or NotFound, as at the start of the request.
        """

    def count_entry(self, who: "RequestAuthority", size_bytes: int) -> None:
        """Count an audit entry with documents and a reason of this size.

        RateLimited if the principal has caused too many.
        """


@dataclass(frozen=True, slots=True)
class RequestAuthority:
    """The principal of a request, its source address, and the policy that permitted it."""

    principal: Principal
    source: str
    """Address of the client."""
    action: str = ""
    policy: str = ""
    said: str = ""
    """User that the caller claims to act for (`X-IPnext-User`); not authenticated."""
    kind: str = ""
    """Kind of the request's object, from its path."""
    name: str = ""
    model: str = ""
    owner: str = ""
    """Owner of the model, when the action was checked."""
    trail: Trail = field(default_factory=Trail)
    authority: Authority | None = None
    """None: the principal may act until the end, such as a user of the machine."""

    def prove(self, unit: Any) -> "RequestAuthority":
        """Return the same with what is in force in a unit of the store. Raises as `Authority.prove_in`."""
        return self if self.authority is None else self.authority.prove_in(self, unit)

    def count_entry(self, size_bytes: int) -> None:
        """Count an audit entry. Raises as `Authority.count_entry`."""
        if self.authority is not None:
            self.authority.count_entry(self, size_bytes)


ACTING: Final[ContextVar[RequestAuthority | None]] = ContextVar("acting", default=None)


@contextmanager
def acting(who: RequestAuthority) -> Iterator[RequestAuthority]:
    """Act as a principal while the context is open: units of work that write leave an entry in the audit."""
    token = ACTING.set(who)
    try:
        yield who
    finally:
        ACTING.reset(token)


def on_this_machine(name: str, action: str) -> RequestAuthority:
    """Return a user of the machine who has the database's URL and does not use the API."""
    return RequestAuthority(
        Principal(kind="local", id="local", name=name), source="", action=action, policy="who-has-the-database-may"
    )
