"""The API proves itself to a client that has a key, before the client sends it (`ipnext.access.proof`)."""

from datetime import UTC, datetime
from typing import Annotated, Final

from fastapi import APIRouter, Query, Request, Response

from ipnext.access.keys import draw_key
from ipnext.access.proof import NONCE_FORM, make_proof
from ipnext.api.dependencies import Rooms
from ipnext.api.requests.guarded_route import GuardedRoute
from ipnext.api.routes.access.keys import NO_STORE
from ipnext.model.access.rights import KeyId, PlatformProof

router = APIRouter(prefix="/v1", tags=["access"], route_class=GuardedRoute)

_NO_KEY: Final = draw_key().proof_key
"""Of a key that nobody has: an unknown id, or an id of an invalid key, gets an answer like any other."""


@router.get("/proof", summary="Ask the platform to prove itself")
def prove_platform(
    request: Request,
    response: Response,
    rooms: Rooms,
    key: Annotated[KeyId, Query(description="Id of an API key that the caller has.")],
    nonce: Annotated[str, Query(pattern=f"^{NONCE_FORM}$", description="Drawn by the caller, for this request only.")],
) -> PlatformProof:
    """Prove knowledge of a key that the caller has and does not send.

    An HMAC over its nonce and the port of this API.
    """
    with rooms.store.read() as unit:
        found = unit.find_key(key)
    is_good = found is not None and found.kind == "key" and found.is_valid(datetime.now(UTC))
    port = (request.scope.get("server") or ("", 0))[1] or 0
    response.headers.update(NO_STORE)
    proof_key = found.proof_key if found is not None and is_good else _NO_KEY
    return PlatformProof(port=port, proof=make_proof(proof_key, nonce=nonce, port=port))
