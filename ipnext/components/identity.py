"""Names of components, in the form of SPIFFE: `spiffe://TRUST_DOMAIN/region/us-east/agent`."""

import re
from dataclasses import dataclass
from enum import StrEnum
from typing import Final

from ipnext.errors import InvalidInput

_TRUST_DOMAIN: Final = re.compile(r"[a-z0-9._-]{1,255}")
_REGION: Final = re.compile(r"[A-Za-z0-9._-]{1,255}")
_SCHEME: Final = "spiffe://"


class Component(StrEnum):
    """A kind of process of the platform."""

    CONTROL_PLANE = "control-plane"
    """API, worker, and the commands that act for them: `ipnext platform`."""
    AGENT = "agent"
    ROUTER = "router"
    HOST = "host"
    GATEWAY = "gateway"


@dataclass(frozen=True)
class ComponentIdentity:
    """A component of one trust domain; all except the control plane belong to a region.

    InvalidInput if the form of the trust domain or the region is not one of SPIFFE.
    """

    trust_domain: str
    component: Component
    region: str | None = None

    def __post_init__(self) -> None:
        if not _TRUST_DOMAIN.fullmatch(self.trust_domain):
            msg = (
                f"trust_domain (IPNEXT_TRUST_DOMAIN): {self.trust_domain!r} must be lower-case letters, "
                "digits, '.', '-', '_'"
            )
            raise InvalidInput(msg, field="trust_domain", value=self.trust_domain)
        if (self.region is None) != (self.component is Component.CONTROL_PLANE):
            msg = f"region: {self.component} of region {self.region!r}; all components but the control plane have one"
            raise InvalidInput(msg, field="region", value=self.region)
        if self.region is not None and not _REGION.fullmatch(self.region):
            msg = f"region: {self.region!r} must be letters, digits, '.', '-', '_'"
            raise InvalidInput(msg, field="region", value=self.region)

    @property
    def uri(self) -> str:
        """The name in a certificate."""
        place = f"region/{self.region}/" if self.region is not None else ""
        return f"{_SCHEME}{self.trust_domain}/{place}{self.component}"


def parse_identity(uri: str) -> ComponentIdentity:
    """Read the name of a certificate. InvalidInput if it is not a component's."""
    domain, _, path = uri.removeprefix(_SCHEME).partition("/")
    match path.split("/"):
        case [component] if uri.startswith(_SCHEME) and component in set(Component):
            return ComponentIdentity(domain, Component(component))
        case ["region", region, component] if uri.startswith(_SCHEME) and component in set(Component):
            return ComponentIdentity(domain, Component(component), region)
    allowed = "spiffe://DOMAIN/control-plane, spiffe://DOMAIN/region/REGION/{agent,router,host,gateway}"
    msg = f"the name {uri[:200]!r} is none of a component; allowed: {allowed}"
    raise InvalidInput(msg, field="uri", value=uri[:200])
