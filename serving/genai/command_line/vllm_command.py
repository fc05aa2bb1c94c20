"""The command line and the environment of one vLLM process, from the settings of its part. Pure.

Arguments as in vLLM 0.32 (`python -m vllm.entrypoints.openai.api_server --help=all`).
"""

import shlex
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ipnext.errors import LoadFailed
from ipnext.model.settings.engine import GIB, VllmSettings
from ipnext.process.inherited_environment import inherited_environment
from serving.genai.command_line.interpreter import COMMAND_VARIABLE, vllm_python
from serving.genai.command_line.kv_transfer import (
    SIDE_CHANNEL_HOST,
    SIDE_CHANNEL_PORT,
    transfer_arguments,
    transfer_environment,
)

ADAPTED_GENERATIONS: Final = 4
"""Generations whose adapters fit into an engine: the serving one, the warm one, the next one, and one between."""

SERVER: Final = ("-m", "vllm.entrypoints.openai.api_server")
"""Not the program `vllm`: it looks up a distribution of that name, which a CPU machine does not have."""
HEADLESS: Final = ("-m", "vllm.entrypoints.cli.main", "serve")
"""Runs the workers of a further host: only `vllm serve` knows `--headless`."""

NO_DOMAIN: Final = "none.invalid"
"""The one domain that an engine may fetch media from: none has this name (RFC 6761). An empty list would allow every
domain."""

LOOPBACK: Final = "127.0.0.1"
"""Address of an engine's processes. vLLM would look for one by UDP, which engines may not use."""


@dataclass(frozen=True, slots=True)
class Node:
    """A host's rank among those that run one engine together. Rank 0 answers requests."""

    rank: int
    count: int
    master: str
    master_port: int = 29501


def engine_command(  # noqa: PLR0913 - each is passed by name
    model: str,
    directory: Path,
    address: int | Path,
    settings: VllmSettings,
    *,
    environment: Mapping[str, str],
    storage: Path | None = None,
    answers_as: str | None = None,
) -> Sequence[str]:
    """Return the command of an engine on a loopback port, or on the Unix socket of a path.

    LoadFailed if there is no vLLM, or the template has a mistake. `storage`: see
    serving.genai.command_line.kv_transfer. `answers_as`: the `model` that the engine writes into its answers; by
    default its own name.
    """
    template = environment.get(COMMAND_VARIABLE)
    if not template:
        arguments = server_arguments(model, directory, address, settings, storage=storage, answers_as=answers_as)
        return (vllm_python(environment), *SERVER, *arguments)
    fields = {
        "python": sys.executable,
        "port": address,
        "socket": address,
        "model": model,
        "name": answers_as or model,
        "directory": directory,
    }
    try:
        return tuple(word.format(**fields) for word in shlex.split(template))
    except (KeyError, IndexError, ValueError) as error:
        msg = f"{COMMAND_VARIABLE}: {template!r} can't be filled ({error!r}); fields: {', '.join(fields)}"
        raise LoadFailed(msg) from error


def server_arguments(  # noqa: PLR0913 - each is passed by name
    model: str,
    directory: Path,
    address: int | Path,
    settings: VllmSettings,
    *,
    host: str = "127.0.0.1",
    storage: Path | None = None,
    answers_as: str | None = None,
) -> Sequence[str]:
    """Return the arguments of a process that answers requests.

    IPnext's follow those of the manifest: vLLM uses the last one. vLLM serves both names and answers by the first one.
    """
    where = ("--uds", str(address)) if isinstance(address, Path) else ("--host", host, "--port", str(address))
    drain = ("--shutdown-timeout", str(max(1, round(settings.grace_seconds))))
    own = ("--disable-uvicorn-access-log", "--enable-server-load-tracking", "--allowed-media-domains", NO_DOMAIN)
    names = (model,) if answers_as is None else (answers_as, model)
    named = ("--model", str(directory), "--served-model-name", *names)
    return (*settings.extra_args, *named, *where, *drain, *own, *_of(settings, storage))


def node_command(model: str, directory: Path, port: int, settings: VllmSettings, node: Node) -> Sequence[str]:
    """Return the command of one host for an engine that several hosts run together."""
    place = (
        *("--nnodes", str(node.count), "--node-rank", str(node.rank)),
        *("--master-addr", node.master, "--master-port", str(node.master_port)),
    )
    if node.rank == 0:
        return ("python", *SERVER, *server_arguments(model, directory, port, settings, host="0.0.0.0"), *place)  # noqa: S104 - rendered for hosts that reach each other
    own = ("--model", str(directory), "--headless", *_of(settings, None), *place)
    return ("python", *HEADLESS, *settings.extra_args, *own)


def engine_environment(
    settings: VllmSettings,
    environment: Mapping[str, str],
    *,
    side_port: int = SIDE_CHANNEL_PORT,
    swap: bool = False,
    allowed: Collection[str] = (),
) -> Mapping[str, str]:
    """Return what an engine inherits, then the part's variables, then IPnext's.

    If OMP_NUM_THREADS is set, vLLM binds no thread to a core.

    `environment` is the parent's, of which it gets listed variables and those `allowed`.
    `side_port`: the port at which other engines request keys and values from this one; its address is the parent's
    VLLM_NIXL_SIDE_CHANNEL_HOST, else loopback. If `swap` is set, vLLM's routes that change weights are open, which can
    execute anything: it listens on a socket of this user alone, or on loopback.
    """
    threads = environment.get("OMP_NUM_THREADS")
    address = environment.get(SIDE_CHANNEL_HOST, LOOPBACK)
    return {
        "VLLM_HOST_IP": LOOPBACK,
        "VLLM_LOOPBACK_IP": LOOPBACK,
        **inherited_environment(environment, allowed=allowed),
        **({"VLLM_CPU_OMP_THREADS_BIND": "nobind"} if threads is not None else {}),
        **({} if has_gpu() else {"VLLM_WORKER_MULTIPROC_METHOD": "fork"}),
        **settings.environment,
        **own_environment(),
        **transfer_environment(settings, host=address, port=side_port),
        **({"VLLM_SERVER_DEV_MODE": "1"} if swap else {}),
    }


def takes_socket(environment: Mapping[str, str]) -> bool:
    """Whether the engine's command can listen on a Unix socket.

    vLLM's own can, and a template with the field `socket`.
    """
    template = environment.get(COMMAND_VARIABLE)
    return not template or "{socket}" in template


def takes_name(environment: Mapping[str, str]) -> bool:
    """Whether the engine's command sets the name it answers by.

    vLLM's own does, and a template with the field `name`.
    """
    template = environment.get(COMMAND_VARIABLE)
    return not template or "{name}" in template


def with_adapters(settings: VllmSettings, adapters: int) -> VllmSettings:
    """Return the settings of an engine with `adapters` adapter parts.

    Slots for those of four generations, and one more. vLLM fills its slots from the first, and its CPU kernels use the
    last one for requests without an adapter: it must stay empty. The routes that load adapters are then open, on the
    engine's own socket only.
    """
    if not adapters:
        return settings
    places = str(ADAPTED_GENERATIONS * adapters + 1)
    room = ("--enable-lora", "--max-lora-rank", str(settings.max_lora_rank), "--max-loras", places)
    kept = ("--max-cpu-loras", places)
    return settings.model_copy(
        update={
            "extra_args": (*settings.extra_args, *room, *kept),
            "environment": {**settings.environment, "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"},
        }
    )


def own_environment() -> Mapping[str, str]:
    """Return the environment of every engine: no usage reports, no access to a model hub, and an unbuffered log."""
    return {
        "HF_HUB_OFFLINE": "1",
        "TRANSFORMERS_OFFLINE": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "DO_NOT_TRACK": "1",
        "PYTHONUNBUFFERED": "1",
    }


def has_gpu() -> bool:
    """Whether this machine has an NVIDIA or AMD device.

    If so, a forked worker would inherit a context that it can't use.
    """
    return any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd"))


def _of(settings: VllmSettings, storage: Path | None) -> Iterator[str]:
    """Yield the arguments for the settings."""
    given: Mapping[str, object] = {
        "--max-model-len": settings.max_model_len,
        "--tensor-parallel-size": settings.tensor_parallel_size,
        "--pipeline-parallel-size": settings.pipeline_parallel_size,
        "--dtype": settings.dtype,
        "--kv-cache-memory-bytes": settings.kv_cache_gib and int(settings.kv_cache_gib * GIB),
        "--max-num-seqs": settings.max_num_seqs,
        "--max-num-batched-tokens": settings.max_num_batched_tokens,
        "--gpu-memory-utilization": settings.gpu_memory_utilization,
        "--runner": settings.runner,
    }
    for name, value in given.items():
        if value is not None:
            yield from (name, str(value))
    if settings.enforce_eager:
        yield "--enforce-eager"
    if settings.enable_prefix_caching is not None:
        yield "--enable-prefix-caching" if settings.enable_prefix_caching else "--no-enable-prefix-caching"
    yield from transfer_arguments(settings, storage)
