"""The controller of PodDisruptionBudgets: how many evictions each allows now."""

from collections.abc import Iterable

from tests.kubernetes.controllers.deployments import resolved
from tests.kubernetes.controllers.pods import PODS, controller_of, is_active, is_ready
from tests.kubernetes.controllers.replica_sets import MANAGER, REPLICA_SETS
from tests.kubernetes.server.cluster import Cluster
from tests.kubernetes.server.errors import Json
from tests.kubernetes.server.selectors import labels_of, selects
from tests.kubernetes.server.storage import Change, Key

BUDGETS = ("policy", "poddisruptionbudgets")


class DisruptionBudgetController:
    """Counts the healthy pods of each budget."""

    def __init__(self, cluster: Cluster) -> None:
        self._cluster = cluster
        self._budgets = cluster.resource("policy/v1", "PodDisruptionBudget")
        self._pods = cluster.resource("v1", "Pod")

    def concerned(self, change: Change) -> Iterable[Key]:
        """Return budgets that change, or near which pods or their owners do."""
        if change.place == BUDGETS:
            yield change.key
        elif change.place in {PODS, REPLICA_SETS}:
            near = self._cluster.objects(self._budgets, change.key[0])
            yield from ((each["metadata"]["namespace"], each["metadata"]["name"]) for each in near)

    def reconcile(self, key: Key) -> None:
        """Write the status of a budget."""
        budget = self._cluster.find(self._budgets, *key)
        if budget is None:
            return
        listed = self._cluster.objects(self._pods, key[0])
        pods = [pod for pod in listed if selects(budget["spec"].get("selector"), labels_of(pod)) and is_active(pod)]
        disrupted = self._disrupted(budget, pods)
        healthy = sum(is_ready(pod) and pod["metadata"]["name"] not in disrupted for pod in pods)
        expected, needed = self._needed(budget["spec"], pods)
        status: Json = {
            "observedGeneration": budget["metadata"]["generation"],
            "currentHealthy": healthy,
            "desiredHealthy": needed,
            "expectedPods": expected,
            "disruptionsAllowed": max(0, healthy - needed) if expected else 0,
        }
        status |= {"disruptedPods": disrupted} if disrupted else {}
        self._cluster.change(self._budgets, {**budget, "status": status}, MANAGER, subresource="status")

    def _disrupted(self, budget: Json, pods: list[Json]) -> Json:
        """Return those pods whose eviction was allowed and that are still there."""
        names = {pod["metadata"]["name"] for pod in pods}
        known = (budget.get("status") or {}).get("disruptedPods") or {}
        return {name: each for name, each in known.items() if name in names}

    def _needed(self, spec: Json, pods: list[Json]) -> tuple[int, int]:
        """Return how many pods are expected, and how many of them must be healthy."""
        if isinstance(spec.get("minAvailable"), int):
            return len(pods), spec["minAvailable"]
        expected = self._expected(pods)
        if "minAvailable" in spec:
            return expected, resolved(spec["minAvailable"], expected, up=True)
        return expected, max(0, expected - resolved(spec.get("maxUnavailable", 0), expected, up=True))

    def _expected(self, pods: list[Json]) -> int:
        """Return the replicas of the controllers of these pods."""
        owners = {each["uid"]: each for pod in pods if (each := controller_of(pod))}
        namespace = pods[0]["metadata"]["namespace"] if pods else ""
        found = (
            self._cluster.find(self._cluster.resource(each["apiVersion"], each["kind"]), namespace, each["name"])
            for each in owners.values()
        )
        return sum(owner["spec"].get("replicas", 1) for owner in found if owner)
