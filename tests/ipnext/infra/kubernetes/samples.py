"""What the tests of pods have in common: settings, a context, identities and notes."""

from pathlib import Path
from typing import Any
from unittest.mock import Mock

from ipnext.infra.context import RegionContext
from ipnext.infra.host.runtime import HostIdentity
from ipnext.infra.kubernetes.documents import HostPod
from ipnext.infra.kubernetes.settings import KubernetesSettings
from ipnext.infra.process.notes import HostNote
from ipnext.infra.settings import AgentSettings
from ipnext.model.deployment.deployment import DeploymentKey

KEY = DeploymentKey(model="ranker", part="dense", region="north", hardware="cpu")


def kubernetes_settings_of(directory: Path, **more: Any) -> KubernetesSettings:
    """Settings with the files that they need; a kind `cpu`."""
    hardware = directory / "hardware.yaml"
    if not hardware.exists():
        hardware.write_text("cpu: {}\n")
    given = {"image": "ipnext:1", "hardware_file": hardware, "certificate_secret": "hosts", **more}
    return KubernetesSettings.model_validate(given)


def region_context(directory: Path, **settings: Any) -> RegionContext:
    """The context of an agent of region `north`."""
    return RegionContext(
        region="north",
        directory=directory,
        artifacts="s3://bucket/store",
        gateway_port=1,
        settings=AgentSettings.model_validate(settings),
        places=Mock(),
        session=Mock(),
    )


def identity(number: int = 0, engine: str = "torch", **key: str) -> HostIdentity:
    """A replica."""
    return HostIdentity(key=KEY.model_copy(update=key), number=number, engine=engine)


def note(of: HostIdentity, **more: Any) -> HostNote:
    """The note of a replica's host."""
    return HostNote(key=of.key, number=of.number, engine=of.engine, url="", **more)


def host_pod(of: HostIdentity | None = None, **more: Any) -> HostPod:
    """A pod to be rendered."""
    of = of or identity()
    given = {
        "name": "ranker-dense-1",
        "identity": of,
        "annotations": {},
        "command": ("python", "-m", "serving.host"),
        "environment": {"OMP_NUM_THREADS": "1"},
        "memory_bytes": 2**30,
        "cpu": 1,
        "grace_seconds": 14.5,
        "trust_domain": "ipnext.local",
    }
    return HostPod(**(given | more))
