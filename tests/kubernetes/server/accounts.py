"""Service accounts of pods: the API server names one in each pod, and mounts its token."""

from tests.kubernetes.server.errors import Json

ACCOUNT, ROOT_AUTHORITY = "default", "kube-root-ca.crt"
ACCOUNT_PATH = "/var/run/secrets/kubernetes.io/serviceaccount"
VOLUME = "kube-api-access"
TOKEN_SECONDS = 3607
LISTS = ("containers", "initContainers")


def with_account(pod: Json, account: Json) -> Json:
    """Return the pod with its account, and with the volume of its token unless one of both declines it."""
    spec = pod["spec"]
    name = account["metadata"]["name"]
    spec = {**spec, "serviceAccountName": name, "serviceAccount": name}
    wishes = (spec.get("automountServiceAccountToken"), account.get("automountServiceAccountToken"), True)
    if next(each for each in wishes if each is not None):
        spec = _with_volume(spec)
    return {**pod, "spec": spec}


def _with_volume(spec: Json) -> Json:
    containers = {name: [_with_mount(each) for each in spec[name]] for name in LISTS if spec.get(name)}
    if all(containers[name] == spec[name] for name in containers):
        return spec
    return {**spec, **containers, "volumes": [*(spec.get("volumes") or ()), _volume()]}


def _with_mount(container: Json) -> Json:
    mounts = list(container.get("volumeMounts") or ())
    if any(each["mountPath"].rstrip("/") == ACCOUNT_PATH for each in mounts):
        return container
    own = {"name": VOLUME, "mountPath": ACCOUNT_PATH, "readOnly": True}
    return {**container, "volumeMounts": [*mounts, own]}


def _volume() -> Json:
    namespace = {"path": "namespace", "fieldRef": {"apiVersion": "v1", "fieldPath": "metadata.namespace"}}
    certificate = {"name": ROOT_AUTHORITY, "items": [{"key": "ca.crt", "path": "ca.crt"}]}
    sources = [
        {"serviceAccountToken": {"path": "token", "expirationSeconds": TOKEN_SECONDS}},
        {"configMap": certificate},
        {"downwardAPI": {"items": [namespace]}},
    ]
    return {"name": VOLUME, "projected": {"defaultMode": 0o644, "sources": sources}}
