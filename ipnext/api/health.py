"""Health of the API and of the services that it depends on."""

from fastapi import APIRouter, Response
from fastapi.concurrency import run_in_threadpool

from ipnext.api.platform import Platform, Rooms
from ipnext.api.schema import UNREADY
from ipnext.errors import Unavailable
from ipnext.model.resource import Readiness

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="Is the process alive")
async def healthz() -> dict[str, str]:
    """200 while the process answers."""
    return {"status": "ok"}


@router.get("/readyz", summary="Can it answer", responses=UNREADY)
async def readyz(rooms: Rooms, response: Response) -> Readiness:
    """200 where the store answers and is this platform's, else 503. Temporal may be down: changes are recorded and submitted later.

    Figures only: it asks nobody for a credential, and ids of changes name models.
    """
    unsubmitted = await run_in_threadpool(_unsubmitted, rooms)
    answers = unsubmitted is not None
    ready = answers and not rooms.outbox.foreign
    response.status_code = 200 if ready else 503
    return Readiness(
        ready=ready,
        store="down" if not answers else "ok" if ready else "foreign",
        temporal="ok" if await rooms.lifecycle.reachable() else "down",
        unsubmitted_changes=unsubmitted,
        stuck_changes=len(rooms.outbox.stuck),
    )


def _unsubmitted(rooms: Platform) -> int | None:
    try:
        with rooms.store.read() as unit:
            return unit.count_unsubmitted()
    except Unavailable:
        return None
