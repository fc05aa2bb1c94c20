"""Logs of a model's replicas, as the infrastructure of their regions keeps them."""

from collections.abc import Collection, Iterable, Mapping
from typing import Annotated

from fastapi import APIRouter, Query, Request

from ipnext.api.authorization.caller import Asker
from ipnext.api.authorization.endpoint_permission import may
from ipnext.api.dependencies import ModelName, PlatformAdapters, Rooms
from ipnext.api.requests.guarded_route import GuardedRoute
from ipnext.api.requests.slots import holder_of
from ipnext.api.requests.turns import Turns
from ipnext.errors import InvalidInput, NotFound, RegionUnreachable, Unavailable
from ipnext.infra.port import LogKeeper
from ipnext.model.deployment.logs import DEFAULT_LINES, MOST_LINES, LogQuery, LogsView, ReplicaLog
from ipnext.model.value import Name

router = APIRouter(prefix="/v1/models", tags=["models"], route_class=GuardedRoute)

READ_AT_ONCE = 16
"""Requests that ask regions for logs at once, a quarter of them for one client; the next ones wait."""

NAMED = 20
"""Most replicas that a message names."""

Part = Annotated[Name | None, Query(description="Of this part alone; of an adapter: of the part that it stands on.")]
Region = Annotated[Name | None, Query(description="Of this region alone.")]
Number = Annotated[int | None, Query(ge=0, lt=2**31, description="Of replicas with this number alone.")]
Tail = Annotated[int, Query(ge=0, le=MOST_LINES, description="Lines of each log, its last ones.")]
After = Annotated[
    list[str] | None,
    Query(description="REGION/FILE@END of a log that is known up to there: only what came later is told."),
]


@router.get("/{name}/logs", dependencies=[may("models.read")], summary="Read the logs of a model's replicas")
async def logs_of_model(  # noqa: PLR0913, PLR0917 - each is a parameter of the query
    name: ModelName,
    http: Request,
    rooms: Rooms,
    asker: Asker,
    part: Part = None,
    region: Region = None,
    replica: Number = None,
    tail: Tail = DEFAULT_LINES,
    after: After = None,
) -> LogsView:
    """Read the logs of hosts and engines, also of replicas that have ended; the last lines are the newest."""
    query = LogQuery(model=name, part=part, replica=replica, tail=tail)
    known = None if after is None else _parse_positions(after)
    return await _readers(http).run(holder_of(asker), _logs_of_model, rooms, query, region, known)


def _readers(http: Request) -> Turns:
    """Return the threads that ask regions for logs: no other endpoint waits for a slow region."""
    state = http.app.state
    if not hasattr(state, "log_readers"):
        state.log_readers = Turns(READ_AT_ONCE)
    readers: Turns = state.log_readers
    return readers


def _logs_of_model(
    rooms: PlatformAdapters, asked: LogQuery, region: str | None, known: Mapping[str, Mapping[str, int]] | None
) -> LogsView:
    keeper = _keeper(rooms, region)
    with rooms.store.read() as unit:
        spec = unit.model(asked.model).manifest.spec
        deployed = {deployment.key.part for deployment in unit.deployments(asked.model)}
    base = next((one.adapter_of for one in spec.parts if one.name == asked.part and one.adapter_of), asked.part)
    query = asked.model_copy(update={"part": base})
    regions = keeper.regions() if region is None else (region,)
    found = _read(keeper, query, regions, known)
    if found.logs or known is not None:
        return found
    everything = _read(keeper, LogQuery(model=asked.model, tail=0), keeper.regions(), None).logs
    parts = {one.name for one in spec.parts} | deployed | {log.part for log in everything}
    raise _nothing(query, regions, sorted(parts), everything)


def _keeper(rooms: PlatformAdapters, region: str | None) -> LogKeeper:
    """Return the infrastructure if it keeps logs and knows the region. Raises NotFound."""
    keeper = rooms.infrastructure
    if not isinstance(keeper, LogKeeper):
        msg = "this infrastructure keeps no logs that IPnext can read; look for them where the replicas run"
        raise NotFound(msg)
    if region is not None and region not in keeper.regions():
        msg = f"no region {region!r}; known: {', '.join(keeper.regions()) or 'none'}"
        raise NotFound(msg)
    return keeper


def _read(
    keeper: LogKeeper, query: LogQuery, regions: Collection[str], known: Mapping[str, Mapping[str, int]] | None
) -> LogsView:
    """Read the unknown parts of logs in all regions that answer; RegionUnreachable if none does."""
    logs: list[ReplicaLog] = []
    silent: list[str] = []
    for region in regions:
        asked = query.model_copy(update={"after": None if known is None else known.get(region, {})})
        try:
            logs += keeper.logs(region, asked)
        except Unavailable:
            silent.append(region)
    if silent and len(silent) == len(regions):
        msg = f"the logs of {', '.join(silent)} can't be read: no agent answers there"
        raise RegionUnreachable(msg)
    logs.sort(key=lambda log: (log.written_at, log.region, log.file))
    return LogsView(logs=tuple(logs), unreachable_regions=tuple(silent))


def _parse_positions(after: Iterable[str]) -> Mapping[str, Mapping[str, int]]:
    """Map each region and file to the bytes that are known. Raises InvalidInput."""
    known: dict[str, dict[str, int]] = {}
    for one in after:
        place, _, end = one.rpartition("@")
        region, _, file = place.partition("/")
        if not file or not end.isdecimal():
            msg = f"after: {one!r} is not REGION/FILE@END; take `region`, the name of `file`, and `end` of a log"
            raise InvalidInput(msg, field="after", value=one)
        known.setdefault(region, {})[file] = int(end)
    return known


def _nothing(
    query: LogQuery, regions: Collection[str], parts: Collection[str], everything: Collection[ReplicaLog]
) -> NotFound:
    """Explain why there is no log, and name those that exist."""
    if query.part is not None and query.part not in parts:
        return NotFound(f"model {query.model!r} has no part {query.part!r}; it has: {', '.join(parts)}")
    what = "no replica" if query.replica is None else f"no replica {query.replica}"
    where = f"{f' of part {query.part!r}' if query.part else ''} of {query.model!r} in {', '.join(regions)} has a log"
    there = dict.fromkeys(f"{log.replica} in {log.region}" for log in everything)
    more = f" and {len(there) - NAMED} more" if len(there) > NAMED else ""
    return NotFound(f"{what}{where}; there are: {', '.join(list(there)[:NAMED]) or 'none yet'}{more}")
