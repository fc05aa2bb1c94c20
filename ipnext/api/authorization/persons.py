"""Users with tokens of the identity provider, and the roles that are bound to them."""

from collections import OrderedDict
from collections.abc import Collection
from datetime import UTC, datetime
from typing import Final

from ipnext.access.oidc import PersonIdentity, TokenVerifier
from ipnext.access.signing_keys import SigningKeys
from ipnext.errors import Forbidden, InvalidInput, Unauthenticated
from ipnext.login.identity_provider import ProviderClient
from ipnext.model.access.rights import Grant, Principal
from ipnext.settings import PlatformSettings
from ipnext.store.repository import Repository
from ipnext.store.store import Store

KEPT: Final = 4096
"""Principals whose identity is kept, so that streams can check whether they may continue."""
GROUPS_SHOWN: Final = 5


class Persons:
    """Proves principals by tokens and gives them the roles of the store. Any thread may use it."""

    def __init__(self, store: Store, verifier: TokenVerifier) -> None:
        self._store, self._verifier = store, verifier
        self._known: OrderedDict[Principal, PersonIdentity] = OrderedDict()

    def prove(self, token: str) -> Principal:
        """Return the principal of a token. Unauthenticated; Forbidden if the user has no role; Unavailable."""
        identity = self._verifier.verify(token)
        grants = self._grants(identity.subjects)
        if not grants:
            raise _without_role(identity)
        principal = Principal(
            kind="user",
            id=identity.id,
            name=identity.name,
            grants=grants,
            expires_at=datetime.fromtimestamp(identity.expires_at, UTC),
        )
        return self._remember(principal, identity)

    def prove_again(self, principal: Principal, unit: Repository) -> Principal:
        """Return a proved principal with the roles that it has in a unit.

        Unauthenticated if its token has expired; Forbidden if it has no role any more.
        """
        identity = self._known.get(principal)
        if identity is None or self._verifier.is_expired(identity):
            msg = (
                f"the token of {principal.text} has expired, or was proved too long ago; "
                "repeat the request, or `ipnext login`"
            )
            raise Unauthenticated(msg)
        grants = unit.grants_of(identity.subjects)
        if not grants:
            raise _without_role(identity)
        if grants == principal.grants:
            return principal
        return self._remember(principal.model_copy(update={"grants": grants}), identity)

    def _remember(self, principal: Principal, identity: PersonIdentity) -> Principal:
        self._known.pop(principal, None)
        self._known[principal] = identity
        while len(self._known) > KEPT:
            self._known.popitem(last=False)
        return principal

    def _grants(self, subjects: Collection[str]) -> tuple[Grant, ...]:
        with self._store.read() as unit:
            return unit.grants_of(subjects)


def persons_of(settings: PlatformSettings, store: Store) -> Persons | None:
    """Return the users of the configured provider, or None if there is none.

    InvalidInput if the settings do not fit together. The provider is not contacted yet: the API starts, and accepts
    keys, while it is unreachable.
    """
    if settings.oidc_issuer is None:
        return None
    if settings.oidc_audience is None:
        msg = (
            "oidc_audience (IPNEXT_OIDC_AUDIENCE): is missing, and IPNEXT_OIDC_ISSUER is set; "
            "a token that was made for "
            "another service must prove nobody here, so name the `aud` of tokens for this platform"
        )
        raise InvalidInput(msg, field="oidc_audience")
    verifier = TokenVerifier(
        settings.oidc_issuer,
        settings.oidc_audience,
        SigningKeys(ProviderClient(settings.oidc_issuer)),
        name_claim=settings.oidc_name_claim,
        groups_claim=settings.oidc_groups_claim,
    )
    return Persons(store, verifier)


def _without_role(identity: PersonIdentity) -> Forbidden:
    groups = ", ".join(map(repr, identity.groups[:GROUPS_SHOWN])) or "none"
    more = len(identity.groups) - GROUPS_SHOWN
    msg = (
        f"user {identity.name} ({identity.id}) is known to the identity provider and has no role here; "
        "groups of the token: "
        f"{groups}{f' and {more} more' if more > 0 else ''}; an administrator grants one by "
        f"`ipnext roles grant {identity.subjects[0]} --role viewer` or `group:NAME`"
    )
    return Forbidden(msg, policy="people-need-a-role")
