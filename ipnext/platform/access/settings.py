"""The API's settings in the lists by which regions check predictions.

Policies of the operator, and the identity provider. All gateways go by one set of them, and each API process by its
own. The store has the set in force. A process with other settings does not replace it, unless their version is higher,
and is not ready: else the process that starts last would decide, such as an old one that is started again and again.
"""

from typing import Final

import structlog

from ipnext.errors import InvalidInput
from ipnext.login.identity_provider import ProviderClient
from ipnext.model.access.predictions import TokenIssuer
from ipnext.model.value import Value
from ipnext.settings import PlatformSettings
from ipnext.store.access.access_lists import AccessListState
from ipnext.store.store import Store

REMEDY: Final = (
    "give all API processes the same settings; to replace those in force, raise IPNEXT_ACCESS_SETTINGS_VERSION"
)
_OF_ISSUER: Final = {
    "issuer": "IPNEXT_OIDC_ISSUER",
    "audience": "IPNEXT_OIDC_AUDIENCE",
    "name_claim": "IPNEXT_OIDC_NAME_CLAIM",
    "groups_claim": "IPNEXT_OIDC_GROUPS_CLAIM",
}


class AccessSettings(Value):
    """Settings of one process."""

    policies: str = ""
    issuer: TokenIssuer | None = None
    """Without its keys."""
    version: int = 0

    def differing(self, state: AccessListState) -> tuple[str, ...]:
        """Return the environment variables whose values are not those in force.

        None is, before the first API has started.
        """
        if state.version is None:
            return ()
        policies = () if self.policies == state.policies else ("IPNEXT_POLICIES_FILE",)
        mine, theirs = (one.model_dump() if one else {} for one in (self.issuer, state.issuer))
        return (*policies, *(name for field, name in _OF_ISSUER.items() if mine.get(field) != theirs.get(field)))


def read_access_settings(settings: PlatformSettings) -> AccessSettings:
    """Read the settings, and the file of policies. InvalidInput if they do not fit together."""
    policies = "" if settings.policies_file is None else settings.policies_file.read_text(encoding="utf-8")
    return AccessSettings(policies=policies, issuer=_issuer(settings), version=settings.access_settings_version)


def note_settings(store: Store, mine: AccessSettings) -> ProviderClient | None:
    """Put the settings in force, unless others are at their version or a later one.

    Return the provider whose keys are to be read.
    """
    with store.begin() as unit:
        unit.note_access_settings(policies=mine.policies, issuer=mine.issuer, version=mine.version)
        state = unit.access_list_state()
    if differing := mine.differing(state):
        structlog.get_logger().error(
            "access settings are not those in force",
            settings=differing,
            version=mine.version,
            in_force=state.version,
            remedy=REMEDY,
        )
        return None
    return None if mine.issuer is None else ProviderClient(mine.issuer.issuer)


def _issuer(settings: PlatformSettings) -> TokenIssuer | None:
    if settings.oidc_issuer is None:
        return None
    if settings.oidc_audience is None:
        msg = "oidc_audience (IPNEXT_OIDC_AUDIENCE): is missing, and IPNEXT_OIDC_ISSUER is set"
        raise InvalidInput(msg, field="oidc_audience")
    return TokenIssuer(
        issuer=settings.oidc_issuer,
        audience=settings.oidc_audience,
        name_claim=settings.oidc_name_claim,
        groups_claim=settings.oidc_groups_claim,
    )
