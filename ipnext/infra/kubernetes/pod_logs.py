"""Output of hosts' pods, read through the API server."""

import asyncio
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import Final

from ipnext.errors import IPnextError
from ipnext.infra.host.logs import MOST_BYTES
from ipnext.infra.kubernetes.cluster import Cluster
from ipnext.infra.kubernetes.documents import HOST_CONTAINER
from ipnext.infra.kubernetes.started_pod import StartedPod
from ipnext.model.deployment.logs import LogQuery, ReplicaLog

_AT_ONCE: Final = 8
"""Logs that are read at the same time."""


async def read_pod_logs(
    cluster: Cluster, query: LogQuery, pods: Mapping[str, StartedPod], *, region: str
) -> tuple[ReplicaLog, ...]:
    """Return the logs of the query, of running replicas by name. A container without output is left out."""
    chosen = [(name, pod) for name, pod in pods.items() if _is_asked(name, query)]
    places = asyncio.Semaphore(_AT_ONCE)
    logs = await asyncio.gather(*(_read(cluster, query, name, pod, region, places) for name, pod in chosen))
    return tuple(log for log in logs if log is not None)


def _is_asked(name: str, query: LogQuery) -> bool:
    model, part, _, number = name.split(".")
    return (
        model == query.model and query.part in {None, part} and (query.replica is None or query.replica == int(number))
    )


async def _read(
    cluster: Cluster, query: LogQuery, name: str, pod: StartedPod, region: str, places: asyncio.Semaphore
) -> ReplicaLog | None:
    known = (query.after or {}).get(pod.name)
    try:
        async with places:
            content = (await cluster.read_log(pod.name, HOST_CONTAINER)).encode()
    except IPnextError:
        return None
    start = known if known is not None and known <= len(content) else max(0, len(content) - MOST_BYTES)
    piece = content[start : start + MOST_BYTES]
    text = piece.decode(errors="replace")
    if known is None:
        text = "".join(text.splitlines(keepends=True)[-query.tail :]) if query.tail else ""
    return ReplicaLog(
        region=region,
        replica=name,
        part=name.split(".")[1],
        file=pod.name,
        written_at=datetime.now(UTC),
        text=text,
        end=start + len(piece),
    )
