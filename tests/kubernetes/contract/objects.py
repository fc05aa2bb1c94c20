"""Objects that the contract tests write."""

from tests.kubernetes.server.errors import Json


def config_map(name: str = "settings", **data: str) -> Json:
    return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": data}


def deployment(name: str = "web", *, replicas: int | None = 1, **container: object) -> Json:
    counted = {} if replicas is None else {"replicas": replicas}
    labels = {"app": name}
    spec = counted | {
        "selector": {"matchLabels": labels},
        "template": {
            "metadata": {"labels": labels},
            "spec": {"containers": [{"name": "main", "image": "main:1", **container}]},
        },
    }
    return {"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name}, "spec": spec}


def pod(name: str = "one", labels: Json | None = None, **spec: object) -> Json:
    return {
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": {"name": name, "labels": labels or {"app": "one"}},
        "spec": {"containers": [{"name": "main", "image": "main:1"}], **spec},
    }


def owned(obj: Json, owner: Json, *, blocks: bool = False) -> Json:
    """The object with a reference to its owner."""
    reference = {"apiVersion": owner["apiVersion"], "kind": owner["kind"], "uid": owner["metadata"]["uid"]}
    reference |= {"name": owner["metadata"]["name"]} | ({"blockOwnerDeletion": True} if blocks else {})
    return {**obj, "metadata": obj["metadata"] | {"ownerReferences": [reference]}}


def managers(obj: Json) -> dict[str, Json]:
    """Manager and operation -> its fields."""
    return {
        f"{each['manager']}/{each['operation']}": each["fieldsV1"] for each in obj["metadata"].get("managedFields", ())
    }
