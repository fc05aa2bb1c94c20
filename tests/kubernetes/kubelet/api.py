"""What a node asks of an API server, over HTTP with the credentials of a kubeconfig."""

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any

import httpx2
import orjson
from lightkube.config import client_adapter
from lightkube.config.kubeconfig import KubeConfig

from tests.kubernetes.server.errors import Json

WATCH_SECONDS = 30
PAUSE_SECONDS = 0.2
STRATEGIC = "application/strategic-merge-patch+json"


class Gone(Exception):
    """The object is not there, or it is another one by now."""


class NodeApi:
    """Requests of one node."""

    def __init__(self, config: KubeConfig) -> None:
        parameters = client_adapter.ConnectionParams(timeout=httpx2.Timeout(10), trust_env=False)
        context = config.get()
        assert context is not None, "the kubeconfig has no current context"
        self.http: httpx2.AsyncClient = client_adapter.AsyncClient(context, parameters)

    async def send(self, method: str, path: str, body: Json | None = None, *, form: str = "application/json") -> Json:
        """Return the answer. Gone for 404 and 409; HTTPStatusError for other errors."""
        content = None if body is None else orjson.dumps(body)
        headers = {} if body is None else {"Content-Type": form}
        answer = await self.http.request(method, path, content=content, headers=headers)
        if answer.status_code in {404, 409}:
            raise Gone(answer.text)
        answer.raise_for_status()
        document: Json = answer.json()
        return document

    async def persist(
        self, method: str, path: str, body: Json | None = None, *, form: str = "application/json"
    ) -> None:
        """Send until the server takes it, or what it is about is gone."""
        while True:
            try:
                await self.send(method, path, body, form=form)
            except Gone:
                return
            except httpx2.HTTPError:
                await asyncio.sleep(PAUSE_SECONDS)
            else:
                return

    async def pods(self, node: str) -> AsyncIterator[tuple[str, Any]]:
        """Yield ("LIST", pods) and then each event; lists again after whatever ends a watch."""
        selector = {"fieldSelector": f"spec.nodeName={node}"}
        while True:
            try:
                listed = (await self.http.get("/api/v1/pods", params=selector)).raise_for_status().json()
                yield "LIST", listed["items"]
                async for event in self._watch(selector | {"resourceVersion": listed["metadata"]["resourceVersion"]}):
                    yield event["type"], event["object"]
            except httpx2.HTTPError:
                await asyncio.sleep(PAUSE_SECONDS)

    async def _watch(self, query: dict[str, str]) -> AsyncIterator[Json]:
        """Yield events until the watch ends or errs; a connection that is silent for too long ends as well."""
        query = query | {"watch": "true", "timeoutSeconds": str(WATCH_SECONDS)}
        async with self.http.stream("GET", "/api/v1/pods", params=query, timeout=WATCH_SECONDS + 5) as answer:
            answer.raise_for_status()
            async for line in answer.aiter_lines():
                event = orjson.loads(line)
                if event["type"] == "ERROR":
                    return
                yield event

    async def entries(self, namespace: str, kind: str, name: str) -> Json:
        """Return the entries of a ConfigMap or a Secret."""
        plural = {"ConfigMap": "configmaps", "Secret": "secrets"}[kind]
        found = await self.send("GET", f"/api/v1/namespaces/{namespace}/{plural}/{name}")
        data = found.get("data") or {}
        return data if kind == "ConfigMap" else {key: base64.b64decode(each).decode() for key, each in data.items()}
