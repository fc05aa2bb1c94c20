"""The size of the access lists: a quota of the whole platform, beside those of owners.

Every region gets one list with all models, keys and roles, and agents refuse a list beyond their limit. So a write that
would exceed the limit is refused, whichever owner it is for. Revocations, retirements and all other writes that make no
entry larger always pass.
"""

from typing import Final

from ipnext.errors import QuotaExceeded
from ipnext.model.access.predictions import listed_access, listed_bytes
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.store.repository import Repository

SETTING: Final = "IPNEXT_ACCESS_LIST_BYTES"


def admit_entry(unit: Repository, manifest: ModelManifest, *, limit: int) -> None:
    """Check the entry of a manifest that is about to be stored: those of all models have at most `limit` bytes.

    Call it in the unit of work that stores the manifest. Units of other models at the same time do not count.

    Raises:
        QuotaExceeded: it has the bytes that are used, and the limit.
    """
    access = manifest.spec.access
    size = listed_bytes(listed_access(manifest.name, manifest.metadata.owner, access, retired=False))
    more = size - unit.model_access_bytes(manifest.name)
    if more <= 0:
        return
    used = unit.access_bytes().models
    if used + more > limit:
        field = "spec.access.callers" if access.callers else "metadata.name"
        raise _exceeded_error(field, "the entries of all models", more, used, limit)


def admit_callers(unit: Repository, before: int, *, field: str, limit: int) -> None:
    """Check the keys and roles that a unit has added: all together have at most `limit` bytes.

    `before`: their bytes at its begin. Raises as `admit_entry`.
    """
    more = unit.access_bytes().callers - before
    if more > 0 and before + more > limit:
        raise _exceeded_error(field, "valid keys and roles", more, before, limit)


def _exceeded_error(field: str, subject: str, more: int, used: int, limit: int) -> QuotaExceeded:
    allowed = f"at most {max(0, limit - used)} more bytes"
    msg = (
        f"{field}: {more} more bytes in the list of who may ask that every region has; {subject} take {used} of "
        f"{limit} bytes ({SETTING}); allowed: {allowed}"
    )
    return QuotaExceeded(msg, field=field, value=more, allowed=(allowed,))
