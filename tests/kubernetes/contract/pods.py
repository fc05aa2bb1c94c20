"""Pods of tests that run on a node of processes, and what the API says of them."""

from typing import Any

import psutil

from tests.kubernetes.rest_client import RestClient
from tests.kubernetes.server.errors import Json
from tests.waiting import until

NODE = "test.ipnext/node"
SLEEP = ["sh", "-c", "trap exit TERM; sleep 1000 & wait"]
"""Ends at once if it is asked to, which process 1 of a container does by its own will only."""


def main(command: list[str], name: str = "main", **fields: object) -> Json:
    """A container."""
    return {"name": name, "image": "main:1", "command": command, **fields}


def on(node: str, *containers: Json, tolerations: list[Json] | None = None) -> Json:
    """A part of the spec of a pod that only this node takes."""
    own = [{"key": NODE, "operator": "Exists"}, *(tolerations or ())]
    return {"containers": list(containers), "nodeSelector": {NODE: node}, "tolerations": own}


def status(kube: RestClient, name: str = "one") -> Json:
    """The status of a pod."""
    found: Json = kube.get("Pod", name).get("status", {})
    return found


def container(kube: RestClient, container_name: str = "main", name: str = "one") -> Json:
    """The status of a container, empty if there is none yet."""
    listed = status(kube, name).get("containerStatuses") or ()
    return next(
        (each for each in listed if each["name"] == container_name),
        {"state": {}, "restartCount": 0, "ready": False, "started": False},
    )


def state_of(kube: RestClient, container_name: str = "main", name: str = "one") -> Json:
    """The state of a container."""
    found: Json = container(kube, container_name, name)["state"]
    return found


def until_running(kube: RestClient, name: str = "one") -> Json:
    """Wait until a pod runs, and return its status."""
    until(lambda: status(kube, name).get("phase") == "Running", why=lambda: status(kube, name))
    return status(kube, name)


def processes_of(word: str) -> list[psutil.Process]:
    """Processes with a word in their variable WORD."""
    found = []
    for each in psutil.process_iter():
        try:
            if each.environ().get("WORD") == word:
                found.append(each)
        except psutil.Error:
            continue
    return found


def logs(kube: RestClient, name: str = "one", **query: Any) -> str:
    """The log of a container, empty as long as there is none."""
    answer = kube.http.get(kube.path("Pod", name, "log"), params=query)
    return answer.text if answer.is_success else ""
