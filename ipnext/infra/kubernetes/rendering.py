"""The objects that an agent would create for a model, without a cluster. Pure functions."""

from collections.abc import Iterator
from typing import Final

from ipnext.errors import InvalidInput
from ipnext.infra.host.runtime import HostIdentity
from ipnext.infra.kubernetes.documents import (
    HOST_URL,
    HostPod,
    Json,
    PodTemplates,
    host_paths,
    name_pod,
    pod_memory,
    render_budget,
    render_pod,
)
from ipnext.infra.kubernetes.settings import KubernetesSettings
from ipnext.infra.region_commands import RegionCommands
from ipnext.model.deployment.deployment import DeploymentKey
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.manifest.part import PartSpec

LAST_WORD: Final = "000000"
"""Last word of the names of rendered pods; those of real ones differ at each start."""


def render_model(
    manifest: ModelManifest,
    commands: RegionCommands,
    settings: KubernetesSettings,
    templates: PodTemplates,
    *,
    trust_domain: str,
) -> Iterator[Json]:
    """Yield the pods and disruption budgets of a model in one region: of each part on each of its hardware kinds.

    A replica set has the fewest replicas of its part. InvalidInput if pods can't run a part.
    """
    for part in manifest.spec.hosted_parts:
        if part.engine == "vllm":
            msg = f"parts.{part.name}.engine: vllm does not run in pods yet; allowed: engines without a server"
            raise InvalidInput(msg, field=f"parts.{part.name}.engine", value=part.engine)
        for option in part.hardware:
            key = DeploymentKey(model=manifest.name, part=part.name, region=commands.region, hardware=option.kind)
            _check_kind(key, templates)
            replicas = max(1, part.min_replicas)
            for number in range(replicas):
                identity = HostIdentity(key=key, number=number, engine=part.engine)
                yield render_pod(_pod(identity, part, commands, settings, trust_domain), settings, templates)
            yield render_budget(key, replicas)


def _check_kind(key: DeploymentKey, templates: PodTemplates) -> None:
    known = templates.by_hardware
    if key.hardware not in known:
        msg = (
            f"parts.{key.part}.hardware: {key.hardware!r} has no entry in the file of hardware kinds; "
            f"allowed: {', '.join(sorted(known)) or 'none'}"
        )
        raise InvalidInput(msg, field=f"parts.{key.part}.hardware", value=key.hardware, allowed=sorted(known))


def _pod(
    identity: HostIdentity,
    part: PartSpec,
    commands: RegionCommands,
    settings: KubernetesSettings,
    trust_domain: str,
) -> HostPod:
    return HostPod(
        name=name_pod(identity, LAST_WORD),
        identity=identity,
        annotations={},
        command=commands.host_command(
            identity.name,
            HOST_URL,
            engine=identity.engine,
            memory_bytes=part.memory_bytes,
            paths=host_paths(settings),
        ),
        environment={"OMP_NUM_THREADS": str(commands.settings.threads), "PYTHONUNBUFFERED": "1"},
        memory_bytes=pod_memory(part.memory_bytes, commands.settings),
        cpu=commands.settings.threads,
        grace_seconds=commands.settings.drain_seconds + commands.settings.grace_seconds,
        trust_domain=trust_domain,
    )
