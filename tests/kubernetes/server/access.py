"""Who may do what: bearer tokens, and the rules of roles for service accounts."""

import secrets
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from tests.kubernetes.server import errors
from tests.kubernetes.server.cluster import Cluster
from tests.kubernetes.server.errors import Json

RBAC = "rbac.authorization.k8s.io/v1"
ADMINISTRATOR = "admin"
TOKEN_SECONDS, LEAST_TOKEN_SECONDS = 3600, 600


@dataclass(frozen=True)
class Act:
    """One request: a verb on a resource; `plural` has the subresource, as rules write it."""

    verb: str
    group: str
    plural: str
    namespace: str = ""
    name: str = ""

    def __str__(self) -> str:
        where = f' in the namespace "{self.namespace}"' if self.namespace else " at the cluster scope"
        name = f' "{self.name}"' if self.name else ""
        return f'cannot {self.verb} resource "{self.plural}" in API group "{self.group}"{name}{where}'


class Access:
    """Users by their tokens; all but the administrator need roles."""

    def __init__(self, cluster: Cluster, tokens: Mapping[str, str]) -> None:
        self._cluster = cluster
        self.tokens = dict(tokens)
        self._ends: dict[str, datetime] = {}
        """When tokens expire, of those that do."""

    def user(self, authorization: str | None) -> str:
        """Return the user of a request. ApiFailure 401 if there is none."""
        kind, _, token = (authorization or "").partition(" ")
        if kind.lower() != "bearer" or token not in self.tokens or self._is_over(token):
            raise errors.unauthorized()
        return self.tokens[token]

    def _is_over(self, token: str) -> bool:
        return token in self._ends and self._ends[token] <= datetime.now(UTC)

    def requested_token(self, namespace: str, name: str, asked: Json) -> Json:
        """Return a new token of a service account. ApiFailure 404 if there is no such account."""
        self._cluster.get(self._cluster.resource("v1", "ServiceAccount"), namespace, name)
        spec = asked.get("spec") or {}
        seconds = int(spec.get("expirationSeconds") or TOKEN_SECONDS)
        if seconds < LEAST_TOKEN_SECONDS:
            why = "may not specify a duration less than 10 minutes"
            raise errors.invalid("TokenRequest", name, [("spec.expirationSeconds", why)])
        token = secrets.token_hex(16)
        self.tokens[token] = service_account(namespace, name)
        self._ends[token] = datetime.now(UTC) + timedelta(seconds=seconds)
        status = {"token": token, "expirationTimestamp": self._ends[token].strftime("%Y-%m-%dT%H:%M:%SZ")}
        return {
            "apiVersion": "authentication.k8s.io/v1",
            "kind": "TokenRequest",
            "metadata": {"name": name, "namespace": namespace},
            "spec": {"audiences": ["https://kubernetes.default.svc"], **spec, "expirationSeconds": seconds},
            "status": status,
        }

    def check(self, user: str, act: Act) -> None:
        """ApiFailure 403 if no role of the user allows it."""
        if user != ADMINISTRATOR and not any(_allows(rule, act) for rule in self._rules(user, act.namespace)):
            message = f'{act.plural} is forbidden: User "{user}" {act}'
            raise errors.forbidden(message)

    def _rules(self, user: str, namespace: str) -> Iterator[Json]:
        for kind, place in (("RoleBinding", namespace), ("ClusterRoleBinding", "")):
            if kind == "RoleBinding" and not namespace:
                continue
            for binding in self._cluster.objects(self._cluster.resource(RBAC, kind), place):
                if any(_names(subject, user) for subject in binding.get("subjects") or ()):
                    yield from self._role_rules(binding["roleRef"], place)

    def _role_rules(self, reference: Json, namespace: str) -> list[Json]:
        kind = reference["kind"]
        place = namespace if kind == "Role" else ""
        role = self._cluster.find(self._cluster.resource(RBAC, kind), place, reference["name"])
        return list((role or {}).get("rules") or ())


def service_account(namespace: str, name: str) -> str:
    """Return the user name of a service account."""
    return f"system:serviceaccount:{namespace}:{name}"


def _names(subject: Json, user: str) -> bool:
    if subject["kind"] == "ServiceAccount":
        return service_account(subject.get("namespace", ""), subject["name"]) == user
    return bool(subject["kind"] == "User" and subject["name"] == user)


def _allows(rule: Json, act: Act) -> bool:
    names = rule.get("resourceNames")
    return (
        _has(rule.get("verbs"), act.verb)
        and _has(rule.get("apiGroups"), act.group)
        and _has(rule.get("resources"), act.plural)
        and (not names or act.name in names)
    )


def _has(allowed: list[str] | None, value: str) -> bool:
    return allowed is not None and ("*" in allowed or value in allowed)
