"""Health of the API and of the services that it depends on."""

from typing import Literal, NamedTuple

from fastapi import APIRouter, Request, Response
from fastapi.concurrency import run_in_threadpool

from ipnext.api.authorization.caller import is_operator
from ipnext.api.dependencies import PlatformAdapters, Rooms
from ipnext.api.schema import UNREADY
from ipnext.errors import Unavailable
from ipnext.model.api.resources import Readiness

router = APIRouter(tags=["health"])


@router.get("/healthz", summary="Is the process alive")
async def healthz() -> dict[str, str]:
    """200 while the process answers."""
    return {"status": "ok"}


@router.get("/readyz", summary="Can it answer", responses=UNREADY)
async def readyz(rooms: Rooms, request: Request, response: Response) -> Readiness:
    """200 if the store answers, is this platform's and has this process's settings of access in force, else 503.

    Temporal may be down: changes are recorded and submitted later. No credential is needed. The numbers of changes are
    those of all owners: only operators and administrators of all owners get them, by their key or token.
    """
    counted = await is_operator(request)
    found = await run_in_threadpool(_look, rooms)
    store: Literal["ok", "down", "foreign"] = "down" if found is None else "foreign" if rooms.outbox.foreign else "ok"
    differs = found is not None and found.differs
    ready = store == "ok" and not differs
    response.status_code = 200 if ready else 503
    return Readiness(
        ready=ready,
        store=store,
        access_settings="differ" if differs else "ok",
        temporal="ok" if await rooms.lifecycle.reachable() else "down",
        unsubmitted_changes=found.unsubmitted if counted and found is not None else None,
        stuck_changes=len(rooms.outbox.stuck) if counted else None,
    )


class _Found(NamedTuple):
    """What the store says."""

    unsubmitted: int
    differs: bool
    """Whether other settings of access are in force."""


def _look(rooms: PlatformAdapters) -> _Found | None:
    try:
        with rooms.store.read() as unit:
            return _Found(unit.count_unsubmitted(), bool(rooms.access_settings.differing(unit.access_list_state())))
    except Unavailable:
        return None
