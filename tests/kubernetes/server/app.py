"""The API over HTTP: from paths, parameters and bodies to operations, and back."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

import orjson
import yaml
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response, StreamingResponse
from starlette.routing import Route

from tests.kubernetes.server import discovery, errors, subresources
from tests.kubernetes.server.access import Access, Act
from tests.kubernetes.server.cluster import APPLY_PATCH, OPTIONS, Cluster
from tests.kubernetes.server.errors import ApiFailure, Json
from tests.kubernetes.server.failures import Failures
from tests.kubernetes.server.lists import BOOKMARK_SECONDS, Pages, Query, Watch, line
from tests.kubernetes.server.logs import node_log
from tests.kubernetes.server.schema.resources import Resource
from tests.kubernetes.server.writing import STRICT, WARN, Options

METHODS = ["GET", "POST", "PUT", "PATCH", "DELETE"]
VALIDATIONS = (STRICT, WARN, "Ignore")
PROPAGATIONS = (None, "", "Background", "Foreground", "Orphan")
VERBS = {"POST": "create", "PUT": "update", "PATCH": "patch", "DELETE": "delete"}


@dataclass(frozen=True)
class Target:
    """What a path names."""

    resource: Resource
    namespace: str
    name: str
    subresource: str

    def act(self, request: Request) -> Act:
        """Return the verb and the resource, as rules of roles name them."""
        plural = f"{self.resource.plural}/{self.subresource}" if self.subresource else self.resource.plural
        return Act(self._verb(request), self.resource.group, plural, self.namespace, self.name)

    def _verb(self, request: Request) -> str:
        if request.method == "GET":
            is_watch = request.query_params.get("watch", "").lower() in {"true", "1"}
            return "get" if self.name else "watch" if is_watch else "list"
        return "deletecollection" if request.method == "DELETE" and not self.name else VERBS[request.method]


class Api:
    """The HTTP side of a cluster."""

    def __init__(self, cluster: Cluster, access: Access, failures: Failures) -> None:
        self.cluster, self.access, self.failures = cluster, access, failures
        self.pages = Pages(cluster)
        self.bookmark_seconds = BOOKMARK_SECONDS
        self.watches: dict[Watch, asyncio.Task[None]] = {}
        self.app = Starlette(routes=[Route("/{path:path}", self._answer, methods=METHODS)])

    async def _answer(self, request: Request) -> Response:
        try:
            return await self._handle(request)
        except ApiFailure as failure:
            return _json(failure.status(), code=failure.code, headers=failure.headers)

    async def _handle(self, request: Request) -> Response:
        parts = [part for part in request.path_params["path"].split("/") if part]
        if parts and parts[0] in {"healthz", "livez", "readyz"}:
            return PlainTextResponse("ok")
        user = self.access.user(request.headers.get("Authorization"))
        if request.method == "GET" and (found := discovery.document(self.cluster.registry, parts)):
            return _json(found)
        if not self._has_version(parts):
            return PlainTextResponse("404 page not found\n", 404)
        target = self._target(parts)
        act = target.act(request)
        await self.failures.meet(act)
        self.access.check(user, act)
        if request.method == "GET":
            return await self._read(request, target)
        return await self._write(request, target)

    def _has_version(self, parts: list[str]) -> bool:
        """Return whether a path begins with a version of the API that is served."""
        match parts:
            case ["api", "v1", *_]:
                return True
            case ["apis", group, version, *_]:
                return version in self.cluster.registry.versions().get(group, ())
        return False

    def _target(self, parts: list[str]) -> Target:
        """Read a path. ApiFailure 404 if nothing is served there."""
        root, rest = (2, "") if parts[0] == "api" else (3, parts[1])
        if len(parts) <= root:
            raise errors.ApiFailure(404, "NotFound", "the server could not find the requested resource")
        version, path, namespace = parts[root - 1], parts[root:], ""
        if path[0] == "namespaces" and len(path) > 2 and path[2] not in {"status", "finalize"}:
            namespace, path = path[1], path[2:]
        resource = self.cluster.registry.find(rest, version, path[0])
        name, subresource = [*path[1:], "", ""][:2]
        if resource is None or (subresource and subresource not in resource.subresources) or len(path) > 3:
            raise errors.ApiFailure(404, "NotFound", "the server could not find the requested resource")
        if resource.namespaced != bool(namespace) and (name or namespace):
            raise errors.ApiFailure(404, "NotFound", "the server could not find the requested resource")
        return Target(resource, namespace, name, subresource)

    async def _read(self, request: Request, target: Target) -> Response:
        resource = target.resource
        if not target.name:
            query = Query(resource, target.namespace, dict(request.query_params))
            return self._watch(query) if query.asks("watch") else _json(self.pages.page(query))
        obj = self.cluster.get(resource, target.namespace, target.name)
        if target.subresource == "log":
            return PlainTextResponse(await node_log(self.cluster, obj, dict(request.query_params)))
        if target.subresource == "scale":
            return _json(subresources.read_scale(resource, obj))
        return _json(obj)

    def _watch(self, query: Query) -> Response:
        watch = Watch(self.cluster, query, bookmark_seconds=self.bookmark_seconds)
        return StreamingResponse(self._stream(watch), media_type="application/json")

    async def _stream(self, watch: Watch) -> AsyncIterator[bytes]:
        task = asyncio.current_task()
        assert task is not None
        self.watches[watch] = task
        try:
            async for event in watch.events():
                if self.failures.is_silent:
                    await asyncio.Event().wait()
                yield line(event)
        finally:
            watch.close()
            self.watches.pop(watch, None)

    async def _write(self, request: Request, target: Target) -> Response:
        body = _decoded(await request.body())
        options = _options(request)
        if target.subresource in {"scale", "binding", "eviction", "token"}:
            code = 200 if target.subresource == "scale" else 201
            return _json(self._write_subresource(request, target, body, options), code=code)
        found = self._write_object(request, target, body, options)
        code = 201 if request.method == "POST" else 200
        headers = [("Warning", _warning(each)) for each in options.warnings]
        return _json(found, code=code, headers=dict(headers))

    def _write_object(self, request: Request, target: Target, body: Any, options: Options) -> Json:
        resource, namespace, name = target.resource, target.namespace, target.name
        match request.method, bool(name):
            case "POST", False:
                return self.cluster.create(resource, namespace, body, options)
            case "PUT", True:
                return self.cluster.update(resource, namespace, name, body, options, subresource=target.subresource)
            case "PATCH", True:
                form = request.headers.get("Content-Type", "").partition(";")[0]
                sub = target.subresource
                return self.cluster.patch(resource, namespace, name, body, form, options, subresource=sub)
            case "DELETE", True:
                asked = _deletion(request, body)
                found = self.cluster.delete(resource, namespace, name, asked, dry_run=options.dry_run)
                return found if _stays(found) else _success(target, found)
            case "DELETE", False if resource.kind != "Namespace":
                return self._delete_all(request, target, _deletion(request, body), options)
        raise errors.not_allowed(request.method)

    def _delete_all(self, request: Request, target: Target, asked: Json, options: Options) -> Json:
        query = Query(target.resource, target.namespace, dict(request.query_params))
        found = self.pages.page(query)
        for obj in found["items"]:
            metadata = obj["metadata"]
            place = metadata.get("namespace", "")
            self.cluster.delete(target.resource, place, metadata["name"], asked, dry_run=options.dry_run)
        return found

    def _write_subresource(self, request: Request, target: Target, body: Any, options: Options) -> Json:
        cluster, namespace, name = self.cluster, target.namespace, target.name
        match target.subresource, request.method:
            case "scale", "PUT" | "PATCH":
                return subresources.write_scale(cluster, target.resource, namespace, name, body, options)
            case "binding", "POST":
                return subresources.bind(cluster, namespace, name, body)
            case "token", "POST":
                return self.access.requested_token(namespace, name, body)
            case "eviction", "POST":
                return subresources.evict(cluster, namespace, name, body, dry_run=options.dry_run)
        raise errors.not_allowed(request.method)


def _options(request: Request) -> Options:
    query = request.query_params
    validation = query.get("fieldValidation") or WARN
    if validation not in VALIDATIONS:
        raise _unsupported(request, "fieldValidation", validation)
    dry_run = query.get("dryRun", "")
    if dry_run not in {"", "All"}:
        raise _unsupported(request, "dryRun", dry_run)
    is_apply = request.headers.get("Content-Type", "").startswith(APPLY_PATCH)
    agent = "unknown" if is_apply else request.headers.get("User-Agent", "unknown").partition("/")[0]
    return Options(
        manager=query.get("fieldManager") or agent,
        dry_run=bool(dry_run),
        field_validation=validation,
        force=query.get("force", "").lower() == "true",
    )


def _unsupported(request: Request, name: str, value: str) -> ApiFailure:
    kind = f"{VERBS[request.method].capitalize()}Options"
    return errors.invalid(kind, "", [(name, f"Unsupported value: {value!r}")], group=OPTIONS)


def _warning(text: str) -> str:
    """Return the value of a header `Warning`."""
    escaped = text.replace("\\", "\\\\").replace('"', '\\"')
    return f'299 - "{escaped}"'


def _decoded(body: bytes) -> Any:
    """Read JSON, or the YAML that applied configurations may be."""
    try:
        return orjson.loads(body) if body else {}
    except orjson.JSONDecodeError:
        pass
    try:
        return yaml.safe_load(body)
    except yaml.YAMLError as error:
        raise errors.bad_request(f"the body is neither JSON nor YAML: {error}") from error


def _deletion(request: Request, body: Any) -> Json:
    """Return the DeleteOptions of body and parameters."""
    query = request.query_params
    asked: Json = dict(body) if isinstance(body, dict) else {}
    if "gracePeriodSeconds" in query:
        asked["gracePeriodSeconds"] = int(query["gracePeriodSeconds"])
    if "propagationPolicy" in query:
        asked["propagationPolicy"] = query["propagationPolicy"]
    if asked.get("propagationPolicy") not in PROPAGATIONS:
        raise _unsupported(request, "propagationPolicy", asked["propagationPolicy"])
    return asked


def _stays(deleted: Json) -> bool:
    """Return whether the answer to a deletion is the object: it waits for something, or it is a pod."""
    return "deletionTimestamp" in deleted["metadata"] or deleted["kind"] == "Pod"


def _success(target: Target, deleted: Json) -> Json:
    resource = target.resource
    group = {"group": resource.group} if resource.group else {}
    details = {"name": target.name, **group, "kind": resource.plural, "uid": deleted["metadata"]["uid"]}
    return {"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "details": details}


def _json(document: Json, *, code: int = 200, headers: Json | None = None) -> Response:
    return Response(orjson.dumps(document), code, headers, media_type="application/json")
