"""A token of a region's replicas and routes, with which a caller can wait until they change."""

import json
from hashlib import blake2b

from ipnext.model.deployment.region_state import RegionState

_UNNAMED = {"starts", "swaps", "log"}
"""Fields outside the token: no caller waits for them, and the progress of an engine changes all the time."""


def with_token(state: RegionState) -> RegionState:
    """Return the state with its token. Equal replicas and routes have equal tokens; traffic counts do not matter."""
    replicas = [replica.model_dump(mode="json", exclude=_UNNAMED) for replica in state.replicas]
    named = json.dumps([replicas, dict(state.routes)], sort_keys=True, separators=(",", ":"))
    return state.model_copy(update={"token": blake2b(named.encode(), digest_size=12).hexdigest()})
