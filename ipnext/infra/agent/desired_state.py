"""The desired state of a region, in files: one for each deployment and each route table. It outlives the agent."""

import asyncio
from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from types import MappingProxyType
from typing import TypeVar

import structlog
from pydantic import ValidationError

from ipnext.infra.process.atomic_file import remove_file, replace_file
from ipnext.model.deployment.deployment import Deployment, DeploymentKey
from ipnext.model.deployment.route_table import RouteTable
from ipnext.model.value import Value
from ipnext.model.wire import decode

Kept = TypeVar("Kept", bound=Value)

WRITERS = 16
"""Route tables that are written in parallel."""


class DesiredState:
    """Deployments and route tables below a directory. A write is on disk when the call returns."""

    def __init__(self, directory: Path) -> None:
        self._deployment_files = directory / "deployments"
        self._route_files = directory / "routes"
        self._deployments = {d.key: d for d in _read_all(self._deployment_files, Deployment)}
        self._routes = {t.model: t for t in _read_all(self._route_files, RouteTable)}
        self._writers = ThreadPoolExecutor(WRITERS, thread_name_prefix="wanted-state")

    @property
    def deployments(self) -> Mapping[DeploymentKey, Deployment]:
        """Every desired replica set."""
        return MappingProxyType(self._deployments)

    @property
    def routes(self) -> Mapping[str, RouteTable]:
        """Model -> route table in force."""
        return MappingProxyType(self._routes)

    def put_deployment(self, deployment: Deployment) -> None:
        """Store this as the desired state of its replica set."""
        if self._deployments.get(deployment.key) != deployment:
            replace_file(self._deployment_file(deployment.key), _bytes(deployment), durable=True)
            self._deployments[deployment.key] = deployment

    def remove_deployment(self, key: DeploymentKey) -> None:
        """Remove a replica set."""
        if self._deployments.pop(key, None):
            remove_file(self._deployment_file(key))

    async def put_route(self, table: RouteTable) -> None:
        """Store this as the route table of its model. One call at a time for each model.

        Those of different models wait for the disk together: it syncs many files in little more time than one.
        """
        if self._routes.get(table.model) != table:
            write = partial(replace_file, self._route_file(table.model), _bytes(table), durable=True)
            await asyncio.get_running_loop().run_in_executor(self._writers, write)
            self._routes[table.model] = table

    def remove_route(self, model: str) -> None:
        """Remove a model's route table."""
        if self._routes.pop(model, None):
            remove_file(self._route_file(model))

    def _deployment_file(self, key: DeploymentKey) -> Path:
        return self._deployment_files / f"{key}.json"

    def _route_file(self, model: str) -> Path:
        return self._route_files / f"{model}.json"


def longest_drain(deployments: Iterable[Deployment], *, drain_seconds: float) -> float:
    """Return the longest drain time of these replica sets; `drain_seconds` is the default of one that sets none."""
    told = (drain_seconds if one.drain_seconds is None else one.drain_seconds for one in deployments)
    return max(told, default=drain_seconds)


def _bytes(value: Value) -> bytes:
    return value.model_dump_json(indent=1).encode()


def _read_all(directory: Path, kind: type[Kept]) -> list[Kept]:
    """Read all values of a directory. An unreadable one is set aside as `.refused` and logged, never partly used."""
    found = []
    for path in sorted(directory.glob("[!.]*.json")):
        try:
            found.append(decode(kind, path.read_bytes()))
        except ValidationError as error:
            path.replace(path.with_suffix(".refused"))
            structlog.get_logger().error("wanted state refused", file=str(path), reason=str(error))
    return found
