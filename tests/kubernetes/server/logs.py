"""Logs of pods: the API server asks the node for them."""

import httpx2

from tests.connections import close_handshakes
from tests.kubernetes.server import errors
from tests.kubernetes.server.cluster import Cluster
from tests.kubernetes.server.errors import Json

SECONDS = 10.0


async def node_log(cluster: Cluster, pod: Json, parameters: dict[str, str]) -> str:
    """Return the log of a container. ApiFailure 400 of a pod that has none yet, 500 if its node does not answer."""
    metadata = pod["metadata"]
    container = _chosen(pod, parameters.pop("container", ""))
    if not pod["spec"].get("nodeName"):
        raise errors.bad_request(f'container "{container}" in pod "{metadata["name"]}" is waiting to start')
    node = cluster.get(cluster.resource("v1", "Node"), "", pod["spec"]["nodeName"])
    url = f"{_address(node)}/containerLogs/{metadata['namespace']}/{metadata['name']}/{container}"
    try:
        async with close_handshakes(httpx2.AsyncClient(trust_env=False, verify=False, timeout=SECONDS)) as client:
            answer = await client.get(url, params=parameters)
    except httpx2.HTTPError as error:
        raise errors.ApiFailure(500, "InternalError", f"the node does not answer: {error}") from error
    if answer.status_code != 200:
        raise errors.bad_request(answer.text)
    return answer.text


def _chosen(pod: Json, asked: str) -> str:
    """Return the name of a container. ApiFailure 400 if the pod has another one, or several and none is named."""
    spec, name = pod["spec"], pod["metadata"]["name"]
    names = [each["name"] for each in spec["containers"]]
    if not asked and len(names) > 1:
        text = " ".join(names)
        raise errors.bad_request(f"a container name must be specified for pod {name}, choose one of: [{text}]")
    known = names + [each["name"] for each in spec.get("initContainers") or ()]
    if asked and asked not in known:
        raise errors.bad_request(f"container {asked} is not valid for pod {name}")
    return asked or names[0]


def _address(node: Json) -> str:
    status = node.get("status", {})
    port = status.get("daemonEndpoints", {}).get("kubeletEndpoint", {}).get("Port")
    addresses = [each["address"] for each in status.get("addresses", ()) if each["type"] == "InternalIP"]
    if not addresses or not port:
        raise errors.ApiFailure(500, "InternalError", f"node {node['metadata']['name']} has no address")
    return f"https://{addresses[0]}:{port}"
