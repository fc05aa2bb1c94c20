"""Verifies tokens of an OpenID Connect provider: JWTs (RFC 7519) by the rules of RFC 8725.

A token proves a person if the provider's published key signed it by a listed algorithm, for this platform, and it is in
force. References of a token to its own key (`jku`, `jwk`, `x5u`, `x5c`) are never followed.
"""

import json
import re
import time
from collections.abc import Callable, Mapping
from typing import Any, Final, NamedTuple, Protocol

from joserfc import jws
from joserfc.errors import JoseError
from joserfc.jwt import JWTClaimsRegistry
from joserfc.registry import HeaderParameter
from joserfc.util import urlsafe_b64decode

from ipnext.access.key_sets import ALGORITHMS, SigningKey
from ipnext.errors import Unauthenticated
from ipnext.model.access.roles import LONGEST_NAME
from ipnext.model.value import unique_names

LEEWAY_SECONDS: Final = 30
"""Allowed difference between the clocks of provider and platform, in seconds, for `exp`, `nbf` and `iat`."""
LONGEST_TOKEN: Final = 16_384
LONGEST_HEADER: Final = 4096
LONGEST_KID: Final = 256
MOST_GROUPS: Final = 1000
FARTHEST: Final = 250_000_000_000
"""A later expiry, beyond the year 9892, is replaced by this one; Unix time in seconds."""
USER_CLAIM: Final = "preferred_username"
"""Claim of `user:NAME`, unless another one is configured."""
TYPES: Final = frozenset({"jwt", "at+jwt"})
"""Accepted kinds of token (`typ`), besides those that name none. Others, such as `logout+jwt`, prove no person."""

_FORM: Final = re.compile(r"([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)\.([A-Za-z0-9_-]+)")


class PersonIdentity(NamedTuple):
    """A person that a token proves."""

    issuer: str
    sub: str
    user: str | None
    """Value of the claim that names users."""
    email: str | None
    """The address, if the provider verified it."""
    groups: tuple[str, ...]
    expires_at: float
    """Expiry of the token, with the leeway; Unix time in seconds."""

    @property
    def name(self) -> str:
        """The person's name for readers. It decides nothing: people may choose it."""
        return self.user or self.email or self.sub

    @property
    def id(self) -> str:
        """Permanent identifier: `issuer#sub`."""
        return f"{self.issuer}#{self.sub}"

    @property
    def subjects(self) -> tuple[str, ...]:
        """Subjects of role bindings. Each kind is of one claim, so that no claim passes for another one."""
        claims = (("user", self.user), ("email", self.email), ("sub", self.sub))
        named = tuple(f"{kind}:{name}" for kind, name in claims if name is not None)
        return (*named, *(f"group:{group}" for group in self.groups))


class KeyFinder(Protocol):
    """Finds public keys: read from the provider itself, or sent by another component."""

    def find(self, kid: str | None, algorithm: str) -> SigningKey:
        """Return the key that a token names, or the only one of its algorithm. Unauthenticated; Unavailable."""


class _Registry(jws.JWSRegistry):
    """Listed algorithms; header parameters other than `alg` and `kid` are ignored."""

    default_header_registry: Mapping[str, HeaderParameter] = {  # type: ignore[assignment]
        name: jws.JWSRegistry.default_header_registry[name] for name in ("alg", "kid")
    }
    max_header_length = LONGEST_HEADER
    max_payload_length = LONGEST_TOKEN


class TokenVerifier:
    """Verifies tokens of one issuer for one audience. Any thread may use it."""

    def __init__(
        self,
        issuer: str,
        audience: str,
        keys: KeyFinder,
        *,
        name_claim: str | None = None,
        groups_claim: str = "groups",
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`name_claim` is the claim that names users, which tokens then need; None: `USER_CLAIM`, if a token has it."""
        self._issuer, self._keys, self._clock = issuer, keys, clock
        self._name_claim, self._groups_claim = name_claim, groups_claim
        self._registry = _Registry(algorithms=list(ALGORITHMS), strict_check_header=False)
        self._claims = JWTClaimsRegistry(
            now=lambda: int(clock()),
            leeway=LEEWAY_SECONDS,
            iss={"essential": True, "value": issuer},
            aud={"essential": True, "value": audience},
            sub={"essential": True},
            exp={"essential": True},
            iat={"essential": True},
        )

    def verify(self, token: str) -> PersonIdentity:
        """Return the person that a token proves. Unauthenticated names the fault, and repeats nothing of the token.

        Unavailable if the provider's keys can't be read.
        """
        form = _FORM.fullmatch(token) if len(token) <= LONGEST_TOKEN else None
        if form is None:
            msg = f"the credential is neither an API key nor a signed JWT of at most {LONGEST_TOKEN} characters"
            raise Unauthenticated(msg)
        header = _checked_header(_document(form[1], "header"))
        key = self._keys.find(header.get("kid"), header["alg"])
        try:
            signed = jws.deserialize_compact(token, key, registry=self._registry)
        except (JoseError, ValueError) as error:
            msg = "the token's signature is not the identity provider's"
            raise Unauthenticated(msg) from error
        claims = _parse_object(signed.payload or b"", "claims")
        self._check_claims(claims)
        return PersonIdentity(
            self._issuer,
            _text(claims, "sub"),
            self._user(claims),
            _verified_email(claims),
            _groups(claims, self._groups_claim),
            float(min(claims["exp"], FARTHEST)) + LEEWAY_SECONDS,
        )

    def is_expired(self, identity: PersonIdentity) -> bool:
        """Return whether the token of an identity has expired."""
        return self._clock() >= identity.expires_at

    def _check_claims(self, claims: Mapping[str, Any]) -> None:
        try:
            self._claims.validate(dict(claims))
        except JoseError as error:
            expected = f"; it has to be of issuer {self._issuer!r}" if "'iss'" in str(error) else ""
            msg = f"the token is refused: {_why(error)}{expected}"
            raise Unauthenticated(msg) from error
        if "cnf" in claims:
            msg = (
                "the token is bound to a key (claim 'cnf'), and a request proves nobody's possession of it; "
                "bearer tokens are taken"
            )
            raise Unauthenticated(msg)

    def _user(self, claims: Mapping[str, Any]) -> str | None:
        if self._name_claim is None:
            return _text(claims, USER_CLAIM) if claims.get(USER_CLAIM) else None
        if self._name_claim == "email" and claims.get("email_verified") is not True:
            msg = (
                "the token's claim 'email' names nobody: the provider has not verified the address "
                "('email_verified' is not true)"
            )
            raise Unauthenticated(msg)
        return _text(claims, self._name_claim)


def _verified_email(claims: Mapping[str, Any]) -> str | None:
    email = claims.get("email")
    is_known = isinstance(email, str) and is_name(email) and claims.get("email_verified") is True
    return email if is_known else None


def _why(error: JoseError) -> str:
    """Return the fault of a claim in the words of the library, which contain names of claims and no values."""
    return str(error).partition(": ")[2] or "a claim is missing or wrong"


def _checked_header(header: Mapping[str, Any]) -> Mapping[str, Any]:
    algorithm, kid, kind = header.get("alg"), header.get("kid"), header.get("typ", "JWT")
    if not isinstance(algorithm, str) or algorithm not in ALGORITHMS:
        msg = f"the token is signed by no algorithm that is allowed: {', '.join(ALGORITHMS)}"
        raise Unauthenticated(msg)
    if kid is not None and (not isinstance(kid, str) or len(kid) > LONGEST_KID):
        msg = f"the token's `kid` is no text of at most {LONGEST_KID} characters"
        raise Unauthenticated(msg)
    if not isinstance(kind, str) or kind.lower().removeprefix("application/") not in TYPES:
        msg = "the token is of a kind (`typ`) that proves no person; allowed: JWT, at+jwt"
        raise Unauthenticated(msg)
    if "crit" in header or "b64" in header or header.get("cty") is not None:
        msg = "the token has a header (crit, b64 or cty) that is not understood; nested tokens are not taken"
        raise Unauthenticated(msg)
    return header


def _document(segment: str, what: str) -> Mapping[str, Any]:
    try:
        content = urlsafe_b64decode(segment.encode())
    except ValueError as error:
        raise _no_document(what) from error
    return _parse_object(content, what)


def _parse_object(content: bytes, what: str) -> Mapping[str, Any]:
    """Parse a JSON object. Unauthenticated, also if a name occurs twice: readers would differ over which one counts."""
    try:
        found = json.loads(content.decode("utf-8"), object_pairs_hook=unique_names, parse_constant=_no_number)
    except (ValueError, RecursionError) as error:
        raise _no_document(what) from error
    if not isinstance(found, dict):
        raise _no_document(what)
    return found


def _no_document(what: str) -> Unauthenticated:
    msg = f"the token's {what} can't be read: a JSON object, in which no name is given twice, is needed"
    return Unauthenticated(msg)


def _no_number(_: str) -> float:
    msg = "no JSON number"
    raise ValueError(msg)


def _text(claims: Mapping[str, Any], name: str) -> str:
    value = claims.get(name)
    if isinstance(value, str) and value and is_name(value):
        return value
    msg = f"the token's claim {name!r} is no text of 1 to {LONGEST_NAME} printable characters"
    raise Unauthenticated(msg)


def _groups(claims: Mapping[str, Any], name: str) -> tuple[str, ...]:
    given = claims.get(name)
    found = [] if given is None else [given] if isinstance(given, str) else given
    if not isinstance(found, list) or len(found) > MOST_GROUPS or not all(isinstance(item, str) for item in found):
        msg = f"the token's claim {name!r} is no list of at most {MOST_GROUPS} names of groups"
        raise Unauthenticated(msg)
    return tuple(sorted({group for group in found if is_name(group)}))


def is_name(text: str) -> bool:
    """Return whether a text can name a user or a group: 1 to 256 printable characters, without surrounding blanks."""
    return 0 < len(text) <= LONGEST_NAME and text.isprintable() and text == text.strip()
