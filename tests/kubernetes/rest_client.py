"""A client that shows what an API server really answers: documents, statuses and lines of watches."""

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import httpx2
import orjson
import yaml
from lightkube.config import client_adapter
from lightkube.config.kubeconfig import KubeConfig

from tests.kubernetes.server.cluster import APPLY_PATCH, JSON_PATCH, MERGE_PATCH, STRATEGIC_PATCH
from tests.kubernetes.server.errors import Json

PATHS = {
    "ConfigMap": ("api/v1", "configmaps"),
    "Deployment": ("apis/apps/v1", "deployments"),
    "ReplicaSet": ("apis/apps/v1", "replicasets"),
    "Event": ("api/v1", "events"),
    "HTTPRoute": ("apis/gateway.networking.k8s.io/v1", "httproutes"),
    "LeaderWorkerSet": ("apis/leaderworkerset.x-k8s.io/v1", "leaderworkersets"),
    "Lease": ("apis/coordination.k8s.io/v1", "leases"),
    "Pod": ("api/v1", "pods"),
    "PodDisruptionBudget": ("apis/policy/v1", "poddisruptionbudgets"),
    "ResourceQuota": ("api/v1", "resourcequotas"),
    "Role": ("apis/rbac.authorization.k8s.io/v1", "roles"),
    "RoleBinding": ("apis/rbac.authorization.k8s.io/v1", "rolebindings"),
    "Secret": ("api/v1", "secrets"),
    "Service": ("api/v1", "services"),
    "ServiceAccount": ("api/v1", "serviceaccounts"),
}
GLOBAL_PATHS = {
    "CustomResourceDefinition": ("apis/apiextensions.k8s.io/v1", "customresourcedefinitions"),
    "Namespace": ("api/v1", "namespaces"),
    "Node": ("api/v1", "nodes"),
}
SECONDS = 30.0


class Refused(AssertionError):
    """An answer that is no success, with its Status document."""

    def __init__(self, code: int, status: Json) -> None:
        super().__init__(f"{code}: {status.get('message', status)}")
        self.code, self.status = code, status
        self.reason, self.message = status.get("reason", ""), status.get("message", "")

    @property
    def causes(self) -> list[Json]:
        """Return the fields that the answer names."""
        found: list[Json] = (self.status.get("details") or {}).get("causes") or []
        return found


def open_http(config: KubeConfig) -> httpx2.Client:
    """Return an HTTP client for a cluster, with its credentials."""
    found: httpx2.Client = client_adapter.Client(
        config.get(), client_adapter.ConnectionParams(timeout=SECONDS, trust_env=False)
    )
    return found


@dataclass(frozen=True)
class RestClient:
    """Requests to one namespace, by the kind of their object."""

    http: httpx2.Client
    namespace: str = "default"

    def inside(self, namespace: str) -> "RestClient":
        """Return a client of another namespace."""
        return replace(self, namespace=namespace)

    def path(self, kind: str, name: str = "", subresource: str = "") -> str:
        """Return where an object is served."""
        root, plural = GLOBAL_PATHS.get(kind) or PATHS[kind]
        place = "" if kind in GLOBAL_PATHS else f"/namespaces/{self.namespace}"
        return "/".join(part for part in (f"/{root}{place}", plural, name, subresource) if part)

    def send(self, method: str, path: str, body: Any = None, *, form: str = "application/json", **query: Any) -> Json:
        """Return the document of the answer. Refused if it is no success."""
        content = None if body is None else body if isinstance(body, bytes) else orjson.dumps(body)
        headers = {"Content-Type": form} if content is not None else {}
        answer = self.http.request(method, path, content=content, headers=headers, params=_texts(query))
        document: Json = answer.json()
        if answer.is_error:
            raise Refused(answer.status_code, document)
        return document

    def create(self, obj: Json, **query: Any) -> Json:
        """Create an object."""
        return self.send("POST", self.path(obj["kind"]), obj, **query)

    def get(self, kind: str, name: str, subresource: str = "") -> Json:
        """Read an object."""
        return self.send("GET", self.path(kind, name, subresource))

    def page(self, kind: str, **query: Any) -> Json:
        """Read a list."""
        return self.send("GET", self.path(kind), **query)

    def items(self, kind: str, **query: Any) -> list[Json]:
        """Read the objects of a list."""
        found: list[Json] = self.page(kind, **query)["items"]
        return found

    def replace(self, obj: Json, subresource: str = "", **query: Any) -> Json:
        """Replace an object."""
        return self.send("PUT", self.path(obj["kind"], obj["metadata"]["name"], subresource), obj, **query)

    def apply(self, obj: Json, manager: str, subresource: str = "", **query: Any) -> Json:
        """Apply a configuration as a field manager."""
        path = self.path(obj["kind"], obj["metadata"]["name"], subresource)
        body = yaml.safe_dump(obj).encode()
        return self.send("PATCH", path, body, form=APPLY_PATCH, fieldManager=manager, **query)

    def merge(self, kind: str, name: str, patch: Json, subresource: str = "", **query: Any) -> Json:
        """Change an object by a merge patch."""
        return self.send("PATCH", self.path(kind, name, subresource), patch, form=MERGE_PATCH, **query)

    def patch_json(self, kind: str, name: str, operations: list[Json], **query: Any) -> Json:
        """Change an object by a JSON patch."""
        return self.send("PATCH", self.path(kind, name), operations, form=JSON_PATCH, **query)

    def patch_strategic(self, kind: str, name: str, patch: Json, subresource: str = "", **query: Any) -> Json:
        """Change an object by a strategic merge patch."""
        return self.send("PATCH", self.path(kind, name, subresource), patch, form=STRATEGIC_PATCH, **query)

    def delete(self, kind: str, name: str, options: Json | None = None, **query: Any) -> Json:
        """Delete an object."""
        return self.send("DELETE", self.path(kind, name), options, **query)

    def exists(self, kind: str, name: str) -> bool:
        """Return whether there is such an object."""
        try:
            self.get(kind, name)
        except Refused as refused:
            if refused.code == 404:
                return False
            raise
        return True

    @contextlib.contextmanager
    def watch(self, kind: str, *, seconds: int = 60, **query: Any) -> Iterator[Iterator[Json]]:
        """Open a watch; its events come until the time limit."""
        query = {"watch": True, "timeoutSeconds": seconds} | query
        with self.http.stream("GET", self.path(kind), params=_texts(query), timeout=seconds + SECONDS) as answer:
            if answer.is_error:
                answer.read()
                raise Refused(answer.status_code, answer.json())
            yield (orjson.loads(line) for line in answer.iter_lines() if line)


def _texts(query: dict[str, Any]) -> dict[str, str]:
    return {name: str(each).lower() if isinstance(each, bool) else str(each) for name, each in query.items()}
