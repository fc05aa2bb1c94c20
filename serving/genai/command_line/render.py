"""Commands and environment of each host for one replica of a vLLM part, rendered for machines that are not here.

Pure.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path, PurePosixPath

from ipnext.errors import InvalidInput
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.manifest.part import PartSpec
from ipnext.model.settings.engine import VllmSettings, vllm_settings
from ipnext.model.settings.engine_allowances import NO_ALLOWANCES, EngineAllowances
from ipnext.model.value import Value
from serving.genai.command_line.kv_transfer import SIDE_CHANNEL_PORT, transfer_environment
from serving.genai.command_line.vllm_command import (
    SERVER,
    Node,
    node_command,
    own_environment,
    server_arguments,
    with_adapters,
)

NOT_RUN = "not run here: rendered from the manifest for machines with these devices"
PLACE = PurePosixPath("SNAPSHOT_DIRECTORY")
TRANSFER = PurePosixPath("SHARED_DIRECTORY")
MASTER = "HOST_0"
PORT = 8000


class HostCommand(Value):
    """Command and environment of one host."""

    host: str
    devices: tuple[int, ...]
    environment: Mapping[str, str]
    command: tuple[str, ...]


class ReplicaRendering(Value):
    """One replica of a part."""

    model: str
    part: str
    devices: int
    """Devices of the replica, over all hosts."""
    hosts: tuple[HostCommand, ...]
    note: str = NOT_RUN


def render(
    manifest: ModelManifest, part: str, *, nodes: int = 1, allowances: EngineAllowances = NO_ALLOWANCES
) -> ReplicaRendering:
    """Render the commands of one replica on `nodes` hosts with the same number of devices each.

    `allowances`: those of the hosts. InvalidInput if the hosts would refuse the settings, or cannot share a replica in
    this way.
    """
    spec = _vllm_part(manifest, part)
    beside = [name for name, base in manifest.spec.adapters.items() if base == part]
    settings = with_adapters(_check_allowed(spec, allowances), len(beside))
    if nodes < 1 or settings.devices % nodes:
        msg = (
            f"nodes: {nodes} does not divide the {settings.devices} devices of a replica "
            f"(tensorParallelSize {settings.tensor_parallel_size} x pipelineParallelSize "
            f"{settings.pipeline_parallel_size})"
        )
        raise InvalidInput(msg, field="nodes", value=nodes)
    each = settings.devices // nodes
    if nodes > 1 and settings.tensor_parallel_size > each:
        msg = (
            f"nodes: tensorParallelSize {settings.tensor_parallel_size} is more than the {each} devices of a "
            "host; layers are shared "
            "inside a host, so raise pipelineParallelSize instead"
        )
        raise InvalidInput(msg, field="nodes", value=nodes)
    side_channel = transfer_environment(settings, host="ADDRESS_OF_THIS_HOST", port=SIDE_CHANNEL_PORT)
    environment = {**settings.environment, **own_environment(), **side_channel}
    environment["CUDA_VISIBLE_DEVICES"] = ",".join(map(str, range(each)))
    if nodes == 1:
        arguments = server_arguments(manifest.name, Path(PLACE), PORT, settings, storage=Path(TRANSFER))
        alone = ("python", *SERVER, *arguments)
        commands: Sequence[Sequence[str]] = (alone,)
    else:
        commands = [
            node_command(manifest.name, Path(PLACE), PORT, settings, Node(rank, nodes, MASTER)) for rank in range(nodes)
        ]
        environment["VLLM_HOST_IP"] = "ADDRESS_OF_THIS_HOST"
    hosts = tuple(
        HostCommand(host=f"HOST_{rank}", devices=tuple(range(each)), environment=environment, command=tuple(command))
        for rank, command in enumerate(commands)
    )
    return ReplicaRendering(model=manifest.name, part=part, devices=settings.devices, hosts=hosts)


def _check_allowed(spec: PartSpec, allowances: EngineAllowances) -> VllmSettings:
    settings = vllm_settings(spec.settings)
    try:
        allowances.check(settings)
    except ValueError as error:
        msg = f"part {spec.name}: {error}"
        raise InvalidInput(msg, field="settings") from error
    return settings


def _vllm_part(manifest: ModelManifest, part: str) -> PartSpec:
    known = tuple(spec.name for spec in manifest.spec.hosted_parts if spec.engine == "vllm")
    for spec in manifest.spec.hosted_parts:
        if spec.name == part and part in known:
            return spec
    msg = f"part: {part!r} is no part of engine vllm of {manifest.name}; allowed: {', '.join(known) or 'none'}"
    raise InvalidInput(msg, field="part", value=part, allowed=known)
