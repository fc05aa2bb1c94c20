"""Quota of an owner's stored bytes: artifacts, and documents in the database."""

from ipnext.model.access.artifact_use import Allowance, owners_allowance
from ipnext.store.repository import Repository


def allowance_of(unit: Repository, owner: str, *, default: int) -> Allowance:
    """Return the limit of an owner's stored bytes: its quota, else the setting `IPNEXT_ARTIFACT_BYTES` (`default`)."""
    record = unit.find_owner(owner)
    return owners_allowance(owner, record.manifest if record else None, default=default)


def admit_documents(unit: Repository, allowance: Allowance, more: int, *, field: str, counted: bool = False) -> None:
    """Check the growth of an owner's documents in the database. A decrease is never refused. Raises QuotaExceeded.

    Call it in the unit of work that stores them. `field` is the request's field for the message. `counted`: they are
    already stored.
    """
    if more > 0:
        unit.lock_owner(allowance.account)
        used = unit.artifact_bytes(allowance.account)
        allowance.check(used - more if counted else used, more, field=field)
