"""HTTP API of the agent; `LocalProcessInfrastructure` is its only caller."""

from collections.abc import Awaitable, Callable
from typing import TypeVar

import structlog
from aiohttp import web
from aiohttp.typedefs import Middleware
from pydantic import ValidationError

from ipnext.components.authorisation import authorise
from ipnext.components.certificates import CheckedSSLObject
from ipnext.components.identity import Component
from ipnext.errors import InvalidInput, IPnextError, Unauthenticated, Unavailable
from ipnext.infra.agent.reconciler import Region
from ipnext.infra.error_body import error_body
from ipnext.model.access.predictions import AccessList
from ipnext.model.deployment.deployment import Deployment, DeploymentKey
from ipnext.model.deployment.logs import LogQuery
from ipnext.model.deployment.prefetch import Prefetch
from ipnext.model.deployment.route_table import RouteTable
from ipnext.model.gate.live import TimingRound
from ipnext.model.validation_errors import faults_of
from ipnext.model.value import Value
from ipnext.model.wire import decode
from ipnext.network.allowed_hosts import AllowedHosts, joined_headers

MAX_BODY_BYTES = 64 * 2**20
"""Larger than the largest access list (twice the most of `access_list_bytes`, and the operator's policies), and than a
route table of 1,000 generations."""

LONGEST_POLL_SECONDS = 600.0
"""Longest wait for a change."""

Body = TypeVar("Body", bound=Value)
Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


def agent_app(
    region: Region, *, region_name: str, allowed: AllowedHosts | None = None, authenticated: bool = False
) -> web.Application:
    """Make the application. The caller must start the region.

    If `authenticated`, only components may call, each its own routes.
    """
    surface = AgentSurface(region, region_name)
    checks = [errors_as_json, of_good_source(allowed or AllowedHosts()), *([of_component] if authenticated else [])]
    app = web.Application(middlewares=checks, client_max_size=MAX_BODY_BYTES)
    app.router.add_get("/healthz", surface.healthz)
    app.router.add_get("/state", surface.state)
    app.router.add_get("/applied", surface.report_applied)
    app.router.add_get("/changes", surface.changes)
    app.router.add_post("/logs", surface.logs)
    app.router.add_post("/prefetches", surface.prefetch)
    app.router.add_post("/timings", surface.time_replicas)
    app.router.add_put("/deployments", surface.put_deployment)
    app.router.add_delete("/deployments/{model}/{part}/{hardware}", surface.delete_deployment)
    app.router.add_put("/routes/{model}", surface.put_route)
    app.router.add_delete("/routes/{model}", surface.delete_route)
    app.router.add_put("/access", surface.put_access)
    app.router.add_get("/access", surface.access)
    app.router.add_get("/access/uses", surface.key_uses)
    return app


class AgentSurface:
    """Handlers that translate requests into calls of the region."""

    def __init__(self, region: Region, region_name: str) -> None:
        self._region = region
        self._name = region_name

    async def healthz(self, _: web.Request) -> web.Response:
        """Report that the agent runs."""
        return web.json_response({"status": "ok", "region": self._name})

    async def state(self, request: web.Request) -> web.Response:
        """Return the RegionState of each `model` that the query names; of all models if it names none."""
        state = await self._region.state(request.query.getall("model", None))
        return web.Response(text=state.model_dump_json(), content_type="application/json")

    async def report_applied(self, _: web.Request) -> web.Response:
        """Return the AppliedState of all models."""
        applied = await self._region.read_applied()
        return web.Response(text=applied.model_dump_json(), content_type="application/json")

    async def changes(self, request: web.Request) -> web.Response:
        """Answer (empty) once the state of each `model` in the query differs from `token`, or after `seconds`."""
        models, token = request.query.getall("model", []), request.query.get("token", "")
        await self._region.wait_change(models, token, wait_seconds=_seconds(request.query.get("seconds", "0")))
        return web.json_response({})

    async def logs(self, request: web.Request) -> web.Response:
        """Answer a LogQuery with a list of ReplicaLog."""
        logs = await self._region.logs(await _body(request, LogQuery))
        return web.json_response([log.model_dump(mode="json") for log in logs])

    async def prefetch(self, request: web.Request) -> web.Response:
        """Start to fetch snapshots ahead; the answer does not wait for them."""
        self._region.prefetch((await _body(request, Prefetch)).uris)
        return web.json_response({})

    async def time_replicas(self, request: web.Request) -> web.Response:
        """Carry out a TimingRound; the answer comes when it is over."""
        times = await self._region.time_replicas(await _body(request, TimingRound))
        return web.Response(text=times.model_dump_json(), content_type="application/json")

    async def put_deployment(self, request: web.Request) -> web.Response:
        """Make a Deployment the desired state of its replica set."""
        await self._region.apply(await _body(request, Deployment))
        return web.json_response({})

    async def delete_deployment(self, request: web.Request) -> web.Response:
        """Drain a replica set and end it."""
        try:
            key = DeploymentKey(region=self._name, **request.match_info)
        except ValidationError as error:
            raise _to_invalid_input(error) from error
        await self._region.delete(key)
        return web.json_response({})

    async def put_route(self, request: web.Request) -> web.Response:
        """Put a RouteTable into force; the answer comes when the gateway has applied it."""
        table = await _body(request, RouteTable)
        if table.model != request.match_info["model"]:
            msg = f"model: the path says {request.match_info['model']!r}, the body {table.model!r}"
            raise InvalidInput(msg, field="model", value=table.model)
        await self._region.route(table)
        return web.json_response({})

    async def delete_route(self, request: web.Request) -> web.Response:
        """Remove a model from the gateway."""
        await self._region.unroute(request.match_info["model"])
        return web.json_response({})

    async def put_access(self, request: web.Request) -> web.Response:
        """Put the AccessList into force by which the router checks predictions; answer the AccessRevision in force."""
        found = await self._region.put_access(await _body(request, AccessList))
        return web.Response(text=found.model_dump_json(), content_type="application/json")

    async def access(self, _: web.Request) -> web.Response:
        """Return the AccessRevision of the list in force. The list itself is not disclosed."""
        return web.Response(text=self._region.access_revision.model_dump_json(), content_type="application/json")

    async def key_uses(self, _: web.Request) -> web.Response:
        """Return a KeyUseReport: the last prediction request of each API key."""
        report = await self._region.key_uses()
        return web.Response(text=report.model_dump_json(), content_type="application/json")


@web.middleware
async def errors_as_json(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Answer errors of the tree with their status and code; log any other error and answer 500."""
    try:
        return await handler(request)
    except IPnextError as error:
        return _error_response(error)
    except OSError as error:
        return _error_response(Unavailable(f"the agent cannot write its state: {error}; try again"))
    except web.HTTPException:
        raise
    except Exception:  # noqa: BLE001 (the edge of the process: logged, reported to the caller, the agent continues)
        structlog.get_logger().exception("request failed", method=request.method, path=request.path)
        return _error_response(IPnextError("the agent failed on this request; see its log"))


def of_good_source(allowed: AllowedHosts) -> Middleware:
    """Make the middleware that refuses requests to other hosts, and from pages of other origins."""

    @web.middleware
    async def check(request: web.Request, handler: Handler) -> web.StreamResponse:
        hosts = request.headers.getall("Host", [])
        if len(hosts) != 1:
            msg = f"Host: a request has exactly one, got {len(hosts)}"
            raise InvalidInput(msg, field="Host")
        allowed.check_host(hosts[0])
        allowed.check_source(request.method, hosts[0], joined_headers(request.headers.items()))
        return await handler(request)

    return check


@web.middleware
async def of_component(request: web.Request, handler: Handler) -> web.StreamResponse:
    """Refuse requests that the component at the other end of the connection may not make."""
    connection = request.get_extra_info("ssl_object")
    if not isinstance(connection, CheckedSSLObject):
        msg = "a component proves itself by a certificate; this connection has none"
        raise Unauthenticated(msg)
    authorise(Component.AGENT, connection.peer.component, request.path)
    return await handler(request)


def _error_response(error: IPnextError) -> web.Response:
    return web.Response(status=error.http_status, body=error_body(error), content_type="application/json")


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        seconds = -1.0
    if not 0 <= seconds <= LONGEST_POLL_SECONDS:
        msg = f"seconds: must be a number from 0 to {LONGEST_POLL_SECONDS:g}, got {text!r}"
        raise InvalidInput(msg, field="seconds", value=text)
    return seconds


async def _body(request: web.Request, kind: type[Body]) -> Body:
    try:
        return decode(kind, await request.read())
    except ValidationError as error:
        raise _to_invalid_input(error) from error


def _to_invalid_input(error: ValidationError) -> InvalidInput:
    """Name the first error and its field."""
    first = faults_of(error)[0]
    field = ".".join(str(step) for step in first["loc"])
    return InvalidInput(f"{field or 'body'}: {first['msg']}", field=field, value=first.get("input"))
