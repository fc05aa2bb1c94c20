"""A name for what a region's replicas and routes are at a moment, so that a caller can wait until they are something else."""

import json
from hashlib import blake2b

from ipnext.model.deployment import RegionState

_UNNAMED = {"starts", "swaps", "log"}
"""What nothing waits for: how far an engine is changes all the time."""


def with_token(state: RegionState) -> RegionState:
    """The state with its token. Equal replicas and routes have equal ones; traffic counts do not matter."""
    replicas = [replica.model_dump(mode="json", exclude=_UNNAMED) for replica in state.replicas]
    named = json.dumps([replicas, dict(state.routes)], sort_keys=True, separators=(",", ":"))
    return state.model_copy(update={"token": blake2b(named.encode(), digest_size=12).hexdigest()})
