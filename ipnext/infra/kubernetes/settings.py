"""Settings of hosts in a cluster, read once from the environment (`IPNEXT_KUBERNETES_...`)."""

from pathlib import Path

from pydantic import Field, ValidationError
from pydantic_settings import BaseSettings, SettingsConfigDict

from ipnext.errors import InvalidInput


class KubernetesSettings(BaseSettings):
    """Settings by which an agent runs hosts as pods."""

    model_config = SettingsConfigDict(env_prefix="IPNEXT_KUBERNETES_", frozen=True)

    kubeconfig_file: Path | None = None
    """Configuration of the client; None: the service account of the agent's pod."""
    namespace: str = ""
    """Namespace of the region; empty: that of the configuration or of the agent's pod."""
    image: str = Field(min_length=1)
    """Image of hosts and their proxies."""
    python: str = "python"
    """The interpreter in that image."""
    hardware_file: Path
    """YAML: hardware kind -> what its pods have beyond the template: parts of a pod, such as node selectors,
    tolerations, devices and another image. Replicas of a kind that it does not name do not start."""
    pod_template_file: Path | None = None
    """YAML of a pod that each host's pod begins with, such as further volumes or labels."""
    certificate_secret: str = Field(min_length=1)
    """Secret with `tls.crt`, `tls.key` and `ca.crt` of the region's hosts; for their proxies only."""
    store_secret: str = ""
    """Secret whose key `environment.json` has the variables for the artifact store. Empty: hosts need none."""
    service_account: str = ""
    """Service account of hosts' pods; its token is not mounted. Empty: the namespace's default."""
    cache_path: str = ""
    """Directory of the node in which its hosts share fetched snapshots. Empty: each host fetches for itself."""
    port: int = Field(default=8443, gt=0, lt=65536)
    """Port of hosts' proxies."""
    user: int = Field(default=65532, ge=0)
    """User of hosts and proxies; 0: that of the image."""
    max_hosts: int = Field(default=1000, ge=1)
    """Hosts that the region runs at once if IPNEXT_AGENT_MAX_HOSTS sets no number."""
    request_seconds: float = Field(default=10.0, gt=0)
    """Limit of one call of the API server."""
    watch_seconds: int = Field(default=240, ge=1)
    """The API server ends a watch after this time, and another one follows."""
    silent_seconds: float = Field(default=90.0, gt=0)
    """A watch without any event for this long is taken for a dead connection: API servers send a bookmark each
    minute."""
    retry_seconds: float = Field(default=1.0, gt=0)
    """Pause after a failed call before it is made again."""
    lost_seconds: float = Field(default=60.0, gt=0)
    """A pod that is still there this long after its deletion and grace time is given up: its node does not answer."""


def kubernetes_settings(**given: str) -> KubernetesSettings:
    """Read them from the environment, except those that are given. InvalidInput names the invalid one."""
    try:
        return KubernetesSettings.model_validate(given) if given else KubernetesSettings()
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0])
        msg = f"IPNEXT_KUBERNETES_{name.upper()}: {first['msg']}"
        if first["type"] != "missing":
            msg += f", got {first['input']!r}"
        raise InvalidInput(msg, field=name, value=None if first["type"] == "missing" else first["input"]) from error
