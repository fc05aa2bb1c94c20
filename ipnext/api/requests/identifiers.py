"""Ids of records that clients choose. The platform's own have reserved prefixes, so that no client takes one first."""

from uuid import uuid4

from ipnext.errors import InvalidInput
from ipnext.names import RESERVED_PREFIXES


def client_id(field: str, value: str | None) -> str:
    """Return the id that a client chose in `field`, or a new one if it chose none.

    Raises InvalidInput if the id begins with a reserved prefix.
    """
    if value is None:
        return uuid4().hex
    reserved = next((prefix for prefix in RESERVED_PREFIXES if value.startswith(prefix)), None)
    if reserved is None:
        return value
    msg = (
        f"{field}: {value!r} begins with {reserved!r}, which the platform keeps for its own ids; "
        f"allowed: an id that begins with none of {', '.join(RESERVED_PREFIXES)}"
    )
    raise InvalidInput(msg, field=field, value=value)
