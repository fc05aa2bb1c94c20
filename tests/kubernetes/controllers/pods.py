"""What controllers read of pods."""

from datetime import UTC, datetime

from tests.kubernetes.server.errors import Json

DELETION_COST = "controller.kubernetes.io/pod-deletion-cost"
PODS = ("", "pods")


def is_active(pod: Json) -> bool:
    """Return whether it runs or will run."""
    return not is_terminating(pod) and phase(pod) not in {"Succeeded", "Failed"}


def is_terminating(pod: Json) -> bool:
    """Return whether it was deleted and has not ended yet."""
    return "deletionTimestamp" in pod["metadata"]


def phase(pod: Json) -> str:
    """Return the phase of its status."""
    found: str = pod.get("status", {}).get("phase", "Pending")
    return found


def ready_since(pod: Json) -> datetime | None:
    """Return since when it is ready, None if it is not."""
    for condition in pod.get("status", {}).get("conditions") or ():
        if condition["type"] == "Ready" and condition["status"] == "True":
            return read_time(condition.get("lastTransitionTime"))
    return None


def is_ready(pod: Json) -> bool:
    """Return whether its condition Ready is true."""
    return ready_since(pod) is not None


def seconds_to_available(pod: Json, min_ready_seconds: int) -> float | None:
    """Return after how many seconds it counts as available: 0 if it does, None if it is not ready."""
    since = ready_since(pod)
    if since is None:
        return None
    return max(0.0, min_ready_seconds - (datetime.now(UTC) - since).total_seconds()) if min_ready_seconds else 0.0


def read_time(text: str | None) -> datetime:
    """Read a time of an object; none is the beginning of time."""
    return datetime.fromisoformat(text) if text else datetime.min.replace(tzinfo=UTC)


def deletion_cost(pod: Json) -> int:
    """Return its deletion cost, 0 if it has none."""
    text = (pod["metadata"].get("annotations") or {}).get(DELETION_COST, "0")
    return int(text) if text.lstrip("-").isdecimal() else 0


def deletion_order(pod: Json) -> tuple[object, ...]:
    """Return a key: those of least value come first, in the order of Kubernetes' ReplicaSets."""
    status = pod.get("status", {})
    restarts = sum(each.get("restartCount", 0) for each in status.get("containerStatuses") or ())
    since = ready_since(pod)
    return (
        bool(pod["spec"].get("nodeName")),
        ["Pending", "Unknown", "Running"].index(phase(pod)) if phase(pod) in {"Pending", "Unknown"} else 2,
        since is not None,
        deletion_cost(pod),
        -since.timestamp() if since else 0.0,
        -restarts,
        -read_time(pod["metadata"]["creationTimestamp"]).timestamp(),
        pod["metadata"]["name"],
    )


def controller_of(obj: Json) -> Json | None:
    """Return the reference to the controller of an object."""
    return next((each for each in obj["metadata"].get("ownerReferences") or () if each.get("controller")), None)


def controlled_by(owner: Json) -> list[Json]:
    """Return the references of an object that this owner controls."""
    return [
        {
            "apiVersion": owner["apiVersion"],
            "kind": owner["kind"],
            "name": owner["metadata"]["name"],
            "uid": owner["metadata"]["uid"],
            "controller": True,
            "blockOwnerDeletion": True,
        }
    ]


def is_controlled_by(obj: Json, owner: Json) -> bool:
    """Return whether this owner controls the object."""
    reference = controller_of(obj)
    return reference is not None and reference["uid"] == owner["metadata"]["uid"]


def with_condition(conditions: list[Json], new: Json, now: str) -> list[Json]:
    """Return the conditions with this one; its time of transition stays while its status does."""
    old = next((each for each in conditions if each["type"] == new["type"]), None)
    same = old is not None and all(old.get(name) == each for name, each in new.items())
    if old is not None and same:
        return conditions
    begun = old["lastTransitionTime"] if old and old["status"] == new["status"] else now
    others = [each for each in conditions if each["type"] != new["type"]]
    return [*others, {**new, "lastTransitionTime": begun}]
