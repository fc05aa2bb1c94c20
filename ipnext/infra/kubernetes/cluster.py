"""Calls of an API server: documents as they are, and one list and watch that goes on over all that ends it.

lightkube reads the configuration and authenticates, also by tokens that rotate. Its own requests are not used: a watch
of it has no limit of time, and its types drop the fields that they don't know (docs/decisions/0096).
"""

import asyncio
import json
from collections.abc import AsyncIterator, Mapping
from typing import Any, Final, Literal, NamedTuple

import httpx2
import structlog
import yaml
from lightkube.config import client_adapter
from lightkube.config.kubeconfig import KubeConfig
from lightkube.core.exceptions import ConfigError

from ipnext.errors import InvalidInput, IPnextError, Unavailable
from ipnext.infra.kubernetes.settings import KubernetesSettings

Json = dict[str, Any]

MANAGER: Final = "ipnext-agent"
"""Field manager of all that an agent writes."""
PODS: Final = ("/api/v1", "pods")
BUDGETS: Final = ("/apis/policy/v1", "poddisruptionbudgets")
_GONE: Final = 410
_MISSING: Final = 404
_RETRYABLE: Final = frozenset({408, 429})
_MESSAGE_LETTERS: Final = 500
_UNFIT: Final = (
    *(ConfigError, OSError, ValueError, LookupError, TypeError, AttributeError, AssertionError),
    *(yaml.YAMLError, httpx2.InvalidURL),
)
"""What lightkube raises for a configuration that it can't use."""


class ClusterRefused(IPnextError):
    """The API server refuses a call; the message is the cluster's own."""

    code = "ClusterRefused"

    def __init__(self, message: str, *, status: int) -> None:
        super().__init__(message)
        self.status = status

    @property
    def is_missing(self) -> bool:
        """Whether there is no such object."""
        return self.status == _MISSING


class ClusterEvent(NamedTuple):
    """What a watch tells."""

    kind: Literal["LISTING", "LIST", "CHANGED", "DELETED"]
    objects: tuple[Json, ...] = ()
    """Of LIST: all objects; of LISTING, which comes before the list is read: none; otherwise the one."""


class Cluster:
    """The API server of a cluster, in one namespace. All methods raise Unavailable if it gives no answer."""

    def __init__(self, settings: KubernetesSettings) -> None:
        """Read the configuration. InvalidInput."""
        self._settings = settings
        self.namespace, self._http = _connect(settings)

    async def aclose(self) -> None:
        """Close all connections."""
        await self._http.aclose()

    async def create(self, kind: tuple[str, str], document: Json) -> Json:
        """Create an object; return it. ClusterRefused, also if a field is not known."""
        parameters = {"fieldManager": MANAGER, "fieldValidation": "Strict"}
        return await self._call("POST", self._path(kind), document, parameters=parameters)

    async def apply(self, kind: tuple[str, str], document: Json) -> Json:
        """Apply an object by the server, without force; return it.

        ClusterRefused, 409 with the name of another manager of the same field.
        """
        return await self._call(
            "PATCH",
            self._path(kind, document["metadata"]["name"]),
            document,
            form="application/apply-patch+yaml",
            parameters={"fieldManager": MANAGER, "fieldValidation": "Strict"},
        )

    async def patch(self, kind: tuple[str, str], name: str, document: Json, *, part: str = "") -> Json:
        """Merge a document into an object, or into its subresource `part`; return it. ClusterRefused.

        With `metadata.uid` in the document it is refused for another object of that name.
        """
        form = "application/strategic-merge-patch+json"
        parameters = {"fieldManager": MANAGER}
        return await self._call("PATCH", self._path(kind, name, part), document, form=form, parameters=parameters)

    async def delete(
        self, kind: tuple[str, str], name: str, *, uid: str | None = None, grace_seconds: int | None = None
    ) -> None:
        """Delete an object; do nothing if it is not there, or if that name has another one by now. ClusterRefused."""
        options: Json = {"apiVersion": "v1", "kind": "DeleteOptions"}
        if uid is not None:
            options["preconditions"] = {"uid": uid}
        if grace_seconds is not None:
            options["gracePeriodSeconds"] = grace_seconds
        try:
            await self._call("DELETE", self._path(kind, name), options)
        except ClusterRefused as error:
            if error.status not in {_MISSING, 409}:
                raise

    async def read_log(self, name: str, container: str, *, tail: int | None = None) -> str:
        """Return the output of a container. ClusterRefused, as while it has not started."""
        parameters = {"container": container, **({} if tail is None else {"tailLines": str(tail)})}
        answer = await self._send("GET", self._path(PODS, name, "log"), parameters=parameters)
        return answer.text

    async def follow(self, kind: tuple[str, str], selector: str) -> AsyncIterator[ClusterEvent]:
        """Yield all objects of these labels, then each change, and all again after whatever ends the watch."""
        while True:
            yield ClusterEvent("LISTING")
            try:
                objects, version = await self._list(kind, selector)
                yield ClusterEvent("LIST", tuple(objects))
                async for event in self._watch(kind, selector, version):
                    yield event
            except (Unavailable, ClusterRefused) as error:
                if not (isinstance(error, ClusterRefused) and error.status == _GONE):
                    structlog.get_logger().warning("watch ended", of=kind[1], reason=error.message)
                await asyncio.sleep(self._settings.retry_seconds)

    async def _list(self, kind: tuple[str, str], selector: str) -> tuple[list[Json], str]:
        parameters = {"labelSelector": selector, "limit": "500"}
        found: list[Json] = []
        while True:
            page = await self._call("GET", self._path(kind), parameters=parameters)
            found += page["items"]
            more = page["metadata"].get("continue")
            if not more:
                return found, page["metadata"]["resourceVersion"]
            parameters["continue"] = more

    async def _watch(self, kind: tuple[str, str], selector: str, version: str) -> AsyncIterator[ClusterEvent]:
        """Yield the changes since a version, in watches one after the other."""
        while True:
            parameters = {
                "watch": "true",
                "allowWatchBookmarks": "true",
                "labelSelector": selector,
                "resourceVersion": version,
                "timeoutSeconds": str(self._settings.watch_seconds),
            }
            has_told = False
            silent = httpx2.Timeout(self._settings.request_seconds, read=self._settings.silent_seconds)
            url = self._path(kind)
            try:
                async with self._http.stream("GET", url, params=parameters, timeout=silent) as answer:
                    if answer.status_code >= 400:
                        await answer.aread()
                        raise _refusal(answer)
                    async for line in answer.aiter_lines():
                        event = json.loads(line)
                        version, has_told = _version(event), True
                        if event["type"] == "DELETED":
                            yield ClusterEvent("DELETED", (event["object"],))
                        elif event["type"] != "BOOKMARK":
                            yield ClusterEvent("CHANGED", (event["object"],))
            except (httpx2.HTTPError, ConfigError, OSError, ValueError, KeyError) as error:
                msg = f"watch of {url}: {error!r}"
                raise Unavailable(msg) from error
            if not has_told:  # a server that ends watches at once is not asked again at once
                await asyncio.sleep(self._settings.retry_seconds)

    async def _call(
        self,
        method: str,
        path: str,
        document: Json | None = None,
        *,
        form: str = "application/json",
        parameters: Mapping[str, str] | None = None,
    ) -> Json:
        answer = await self._send(method, path, document, form=form, parameters=parameters)
        try:
            found: Json = answer.json()
        except ValueError as error:
            msg = f"{method} {path}: the API server's answer is not JSON"
            raise Unavailable(msg) from error
        return found

    async def _send(
        self,
        method: str,
        path: str,
        document: Json | None = None,
        *,
        form: str = "application/json",
        parameters: Mapping[str, str] | None = None,
    ) -> httpx2.Response:
        content = None if document is None else json.dumps(document)
        headers = {} if content is None else {"content-type": form}
        try:
            async with asyncio.timeout(self._settings.request_seconds):
                answer = await self._http.request(method, path, content=content, headers=headers, params=parameters)
        except (httpx2.HTTPError, ConfigError, OSError, TimeoutError, ValueError, KeyError) as error:
            msg = f"{method} {path}: no answer of the API server: {error!r}"
            raise Unavailable(msg) from error
        if answer.status_code >= 400:
            raise _refusal(answer)
        return answer

    def _path(self, kind: tuple[str, str], name: str = "", part: str = "") -> str:
        steps = (kind[0], "namespaces", self.namespace, kind[1], name, part)
        return "/".join(step for step in steps if step)


def _refusal(answer: httpx2.Response) -> IPnextError:
    """Return the error for an answer of 400 or more, with the cluster's own message."""
    where = f"{answer.request.method} {answer.request.url.path}"
    message = f"{where}: {answer.status_code}: {_message(answer)}"
    if answer.status_code >= 500 or answer.status_code in _RETRYABLE:
        return Unavailable(message)
    return ClusterRefused(message, status=answer.status_code)


def _message(answer: httpx2.Response) -> str:
    try:
        status = answer.json()
    except ValueError:
        return answer.text[:_MESSAGE_LETTERS]
    return str(status.get("message", status) if isinstance(status, dict) else status)[:_MESSAGE_LETTERS]


def _version(event: Json) -> str:
    """Return the version that an event brings. ClusterRefused if the event is an error."""
    found = event["object"]
    if event["type"] == "ERROR":
        code = int(found.get("code", 500))
        msg = f"watch: {code}: {found.get('message', '')}"
        if code >= 500:
            raise Unavailable(msg)
        raise ClusterRefused(msg, status=code)
    version: str = found["metadata"]["resourceVersion"]
    return version


def _connect(settings: KubernetesSettings) -> tuple[str, httpx2.AsyncClient]:
    """Return the namespace and a client by the configuration. InvalidInput."""
    file = settings.kubeconfig_file
    where = "the service account of this pod" if file is None else str(file)
    limit = httpx2.Timeout(settings.request_seconds)
    try:
        config = KubeConfig.from_service_account() if file is None else KubeConfig.from_file(file)
        if (found := config.get()) is None:
            msg = "it has no current context"
            raise ConfigError(msg)
        client = client_adapter.AsyncClient(found, client_adapter.ConnectionParams(timeout=limit, trust_env=False))
    except _UNFIT as error:
        msg = (
            f"IPNEXT_KUBERNETES_KUBECONFIG_FILE: {where} does not say how to reach the cluster: "
            f"{type(error).__name__}: {error}"
        )
        raise InvalidInput(msg, field="kubeconfig_file", value=str(file)) from error
    return settings.namespace or found.namespace or "default", client
