"""What a node asks of an API server, over HTTP with the credentials of a kubeconfig."""

import asyncio
import base64
from collections.abc import AsyncIterator
from typing import Any
from urllib.parse import urlsplit

import httpx2
import orjson
from lightkube.config import client_adapter
from lightkube.config.kubeconfig import KubeConfig

from tests.connections import close_handshakes
from tests.kubernetes.kubelet.times import time_text
from tests.kubernetes.server.accounts import ROOT_AUTHORITY
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
        self.server = urlsplit(context.cluster.server)
        self._authorities: dict[str, dict[str, bytes]] = {}
        self.http = close_handshakes(client_adapter.AsyncClient(context, parameters))

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

    async def contents(self, namespace: str, kind: str, name: str) -> dict[str, bytes]:
        """Return the entries of a ConfigMap or a Secret. Gone if there is none of that name."""
        plural = {"ConfigMap": "configmaps", "Secret": "secrets"}[kind]
        try:
            found = await self.send("GET", f"/api/v1/namespaces/{namespace}/{plural}/{name}")
        except Gone as error:
            msg = f'{kind.lower()} "{name}" not found'
            raise Gone(msg) from error
        data, binary = found.get("data") or {}, found.get("binaryData") or {}
        if kind == "ConfigMap":
            texts = {key: each.encode() for key, each in data.items()}
            return texts | {key: base64.b64decode(each) for key, each in binary.items()}
        return {key: base64.b64decode(each) for key, each in data.items()}

    async def entries(self, namespace: str, kind: str, name: str) -> Json:
        """Return the entries as texts, which variables are."""
        found = await self.contents(namespace, kind, name)
        return {key: each.decode(errors="replace") for key, each in found.items()}

    async def root_authority(self, namespace: str) -> dict[str, bytes]:
        """Return the entries of the ConfigMap that all pods of a namespace mount, which is read once."""
        if namespace not in self._authorities:
            self._authorities[namespace] = await self.contents(namespace, "ConfigMap", ROOT_AUTHORITY)
        return self._authorities[namespace]

    async def account_token(self, pod: Json, account: str, seconds: int, audience: str | None) -> str:
        """Return a new token of a service account, for this pod."""
        metadata = pod["metadata"]
        bound = {"apiVersion": "v1", "kind": "Pod", "name": metadata["name"], "uid": metadata["uid"]}
        spec = {"audiences": [audience] if audience else [], "expirationSeconds": seconds, "boundObjectRef": bound}
        asked = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}
        path = f"/api/v1/namespaces/{metadata['namespace']}/serviceaccounts/{account}/token"
        token: str = (await self.send("POST", path, asked))["status"]["token"]
        return token

    async def warn(self, pod: Json, reason: str, message: str, node: str) -> None:
        """Create an event about a pod."""
        metadata, now = pod["metadata"], time_text()
        about = {"apiVersion": "v1", "kind": "Pod"} | {key: metadata[key] for key in ("name", "namespace", "uid")}
        event = {
            "apiVersion": "v1",
            "kind": "Event",
            "metadata": {"generateName": f"{metadata['name']}.", "namespace": metadata["namespace"]},
            "involvedObject": about,
            "reason": reason,
            "message": message,
            "type": "Warning",
            "count": 1,
            "source": {"component": "kubelet", "host": node},
            "firstTimestamp": now,
            "lastTimestamp": now,
        }
        await self.send("POST", f"/api/v1/namespaces/{metadata['namespace']}/events", event)
