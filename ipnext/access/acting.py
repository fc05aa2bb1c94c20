"""Who acts in this request, for what is written down on its behalf. Follows the request into its threads."""

from contextvars import ContextVar
from dataclasses import dataclass
from typing import Final

from ipnext.model.access import Principal


@dataclass(frozen=True, slots=True)
class Acting:
    """The principal of a request, from where it asks, and the policy that let it."""

    principal: Principal
    source: str
    """Address of the client."""
    action: str = ""
    policy: str = ""
    said: str = ""
    """Who the caller says that it asks for (`X-IPnext-User`); not proved."""


ACTING: Final[ContextVar[Acting | None]] = ContextVar("acting", default=None)
