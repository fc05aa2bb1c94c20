"""Roles of people: bindings of groups and users of the identity provider, and the data for a login."""

from datetime import datetime
from typing import Annotated, Final

from pydantic import AfterValidator, StringConstraints

from ipnext.model.access.rights import ANY, Grant, KeyId, Role, Scope
from ipnext.model.value import Value, WrittenValue

LONGEST_NAME: Final = 256
"""Characters of the name of a user or group."""
SUBJECT_PATTERN: Final = r"^(group|user|email|sub):.+$"


def _printable(text: str) -> str:
    name = text.partition(":")[2]
    if not name.isprintable() or name != name.strip():
        msg = "has characters that can't be printed, or blanks around the name"
        raise ValueError(msg)
    return text


Subject = Annotated[
    str, StringConstraints(pattern=SUBJECT_PATTERN, max_length=LONGEST_NAME + 6), AfterValidator(_printable)
]
"""`group:NAME`, `user:NAME`, `email:ADDRESS` that the provider verified, or `sub:ID`: the provider's permanent
identifier of a person."""


class RoleRequest(WrittenValue):
    """A role to bind to a subject: over one owner's models or all, or over one region."""

    subject: Subject
    role: Role
    owner: Scope = ANY
    region: Scope = ANY


class RoleBinding(Value):
    """A role of a subject, as it is stored. `id` has the form of a key's id."""

    id: KeyId
    subject: Subject
    grant: Grant
    created_at: datetime
    created_by: str


class RoleView(WrittenValue):
    """A role binding as it is listed."""

    id: KeyId
    subject: str
    role: Role
    owner: Scope
    region: Scope
    created_at: datetime
    created_by: str


class LoginView(WrittenValue):
    """How a client gets a token of the identity provider: OAuth 2.0 device authorization with a public client."""

    issuer: str
    client_id: str
    scopes: tuple[str, ...]
    audience: str
    """For whom the token has to be; providers that do not know the parameter `audience` ignore it."""


def role_view(binding: RoleBinding) -> RoleView:
    """Return the listed form of a binding."""
    return RoleView(**binding.grant.model_dump(), **binding.model_dump(exclude={"grant"}))
