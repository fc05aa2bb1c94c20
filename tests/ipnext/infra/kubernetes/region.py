"""A region whose hosts are pods: a cluster of doubles, certificates, and what its agent needs to know."""

import base64
import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path
from uuid import uuid4

import yaml
from lightkube.config.kubeconfig import KubeConfig

from ipnext.components.authority import CertificateAuthority
from ipnext.components.certificates import CertificateFiles
from ipnext.components.identity import Component, ComponentIdentity
from ipnext.components.issuing import Issuer
from ipnext.components.settings import ComponentSettings
from ipnext.infra.kubernetes.documents import COMPONENT_LABEL
from tests.kubernetes.conftest import REAL, config_of
from tests.kubernetes.kubelet.kubelet import Node, NodeThread, running_node
from tests.kubernetes.rest_client import RestClient, open_http
from tests.kubernetes.server.server import ApiServer, running_server

DOMAIN = "ipnext.local"
SECRET = "hosts"
_APART = {
    "labelSelector": {"matchLabels": {COMPONENT_LABEL: "host"}},
    "topologyKey": "kubernetes.io/hostname",
}
ALONE = {"spec": {"affinity": {"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [_APART]}}}}
PACE = 0.05
"""Factor of the nodes' pauses between probes."""


class RegionCertificates:
    """Certificates of all components of a region, as `RunningAgent` asks for them."""

    def __init__(self, directory: Path, region: str) -> None:
        authority = CertificateAuthority.create()
        self._issuer = Issuer(authority, directory, lasts_seconds=86_400, renewed_at=0.9)
        self._identities = {
            component: ComponentIdentity(DOMAIN, component, region)
            for component in (Component.AGENT, Component.ROUTER, Component.GATEWAY, Component.HOST)
        }
        self._plane = ComponentIdentity(DOMAIN, Component.CONTROL_PLANE)
        self._issuer.issue([self._plane, *self._identities.values()])

    def of(self, component: Component) -> CertificateFiles:
        return self._issuer.files(self._identities[component])

    def control_plane(self) -> ComponentSettings:
        files = self._issuer.files(self._plane)
        return ComponentSettings(
            component_certificate_file=files.certificate,
            component_key_file=files.key,
            component_ca_file=files.authorities,
        )

    def environment(self, _region: str) -> Mapping[str, str]:
        places = {
            "IPNEXT_COMPONENT": Component.AGENT,
            "IPNEXT_AGENT_ROUTER": Component.ROUTER,
            "IPNEXT_AGENT_GATEWAY": Component.GATEWAY,
        }
        found = {"IPNEXT_COMPONENT_AUTHENTICATION": "required"}
        for prefix, component in places.items():
            files = self.of(component)
            paths = {"CERTIFICATE": files.certificate, "KEY": files.key, "CA": files.authorities}
            found |= {f"{prefix}_{name}_FILE": str(path) for name, path in paths.items()}
        return found

    def secret(self) -> dict[str, object]:
        """The Secret of the region's hosts."""
        files = self.of(Component.HOST)
        content = {"tls.crt": files.certificate, "tls.key": files.key, "ca.crt": files.authorities}
        data = {name: base64.b64encode(path.read_bytes()).decode() for name, path in content.items()}
        return {"apiVersion": "v1", "kind": "Secret", "metadata": {"name": SECRET}, "data": data}


class RegionCluster:
    """One namespace of a cluster, with nodes that are processes of this machine."""

    def __init__(self, config: KubeConfig, kube: RestClient, directory: Path, region: str) -> None:
        self.kube, self.region = kube, region
        self.server: ApiServer | None = None
        """The double, which a test can cut off; None: a real API server."""
        self._config = config
        self.certificates = RegionCertificates(directory / "certificates", region)
        self._directory = directory
        self.nodes: dict[str, NodeThread] = {}
        kube.create(self.certificates.secret())

    def node(self, name: str) -> Node:
        return Node(name, self._config, pace=PACE, lease_seconds=1)

    def lose_node(self, name: str) -> None:
        """End a node with all its processes; the cluster learns at once that it has been silent for an hour."""
        self.nodes.pop(name).stop()
        lease = {"spec": {"renewTime": "2020-01-01T00:00:00.000000Z"}}
        self.kube.inside("kube-node-lease").merge("Lease", name, lease)

    def environment(self, store: Path | None = None, *, alone: bool = False, **settings: str) -> Mapping[str, str]:
        """Settings of the agent, beyond its certificates.

        `store` is the directory that hosts fetch from; `alone`: no two hosts are on one node.
        """
        volume, mount = {"name": "artifacts"}, {"name": "artifacts"}
        host = {"name": "host", "volumeMounts": [{**mount, "mountPath": str(store)}]}
        template = {"spec": {"volumes": [{**volume, "hostPath": {"path": str(store)}}], "containers": [host]}}
        files = {
            "HARDWARE_FILE": ({"cpu": ALONE if alone else {}}, "hardware.yaml"),
            "POD_TEMPLATE_FILE": (template if store else {}, "pod.yaml"),
        }
        given = {"IMAGE": "ipnext", "PYTHON": sys.executable, "CERTIFICATE_SECRET": SECRET, "USER": "0"} | settings
        given |= {"NAMESPACE": self.kube.namespace, "KUBECONFIG_FILE": os.environ.get(REAL, "")}
        if self.server is not None:
            given["KUBECONFIG_FILE"] = str(self.server.write_kubeconfig(self._directory / "kubeconfig"))
        for name, (content, file) in files.items():
            (self._directory / file).write_text(yaml.safe_dump(content))
            given.setdefault(name, str(self._directory / file))
        return {
            "IPNEXT_AGENT_RUNTIME": "kubernetes",
            **{f"IPNEXT_KUBERNETES_{name}": value for name, value in given.items()},
        }


@contextmanager
def running_cluster(directory: Path, region: str, *, nodes: int = 1) -> Iterator[RegionCluster]:
    """A cluster with nodes, which ends with the block: the double, or that of TEST_KUBECONFIG."""
    with ExitStack() as stack:
        server = None
        if path := os.environ.get(REAL):
            config = KubeConfig.from_file(path)
        else:
            server = stack.enter_context(running_server())
            config = config_of(server)
        kube = RestClient(stack.enter_context(open_http(config)))
        name = kube.create({"apiVersion": "v1", "kind": "Namespace", "metadata": {"generateName": "region-"}})
        cluster = RegionCluster(config, kube.inside(name["metadata"]["name"]), directory, region)
        cluster.server = server
        prefix = uuid4().hex[:6]
        for number in range(nodes):
            node = f"node-{prefix}-{number}"
            cluster.nodes[node] = stack.enter_context(running_node(cluster.node(node)))
        yield cluster
