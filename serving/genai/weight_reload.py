"""In-place changes of a running vLLM: other weights of the same form, or adapters in addition to the model.

Weights need `VLLM_SERVER_DEV_MODE=1`, adapters `VLLM_ALLOW_RUNTIME_LORA_UPDATING=1` with `--enable-lora`; on loopback
only, since a caller of those routes may execute anything. `hot_swap` and `adapters` make both part of a rollout.
"""

import json
import time
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from ipnext.components.http_sessions import HttpSessions
from ipnext.errors import LoadFailed, Unavailable
from ipnext.model.deployment.deployment import STREAM_DRAIN_SECONDS
from ipnext.model.registry.checkpoint import Checkpoint
from ipnext.model.registry.hot_swap import changed_beside_weights, obstacle, read_once, same_model
from ipnext.model.settings.engine import VllmSettings
from serving.genai.checkpoint_check import verify
from serving.genai.engine.probe import ENGINE_BYTES, EngineProbe
from serving.snapshots.fetch import LocalSnapshot, verify_snapshot

LATE_SECONDS: Final = 30.0
"""Additional time for requests after their drain; the router has ended them by then."""


@dataclass(frozen=True, slots=True)
class ReloadSeconds:
    """Seconds in which no request began, and seconds until the new weights had answered."""

    pause_seconds: float
    seconds: float


async def swap_weights(  # noqa: PLR0913 - each is passed by name
    session: HttpSessions,
    url: str,
    model: str,
    *,
    running: Checkpoint,
    new: LocalSnapshot,
    settings: VllmSettings,
    drain_seconds: float = STREAM_DRAIN_SECONDS,
) -> ReloadSeconds:
    """Load the weights of another snapshot of the same form into a running engine.

    Running requests finish with the old weights; requests that arrive during the swap wait and get the new ones, so
    that no answer mixes both. Unavailable if running requests take 30 seconds more than `drain_seconds`.

    If the form differs, LoadFailed is raised before the engine is changed. After a LoadFailed that names a step the
    engine must be stopped: it may have half of each, and its `/health` does not show that.
    """
    verify(new, settings)
    told = new.manifest.checkpoint
    if told is None or told.tensors != running.tensors or told.architecture != running.architecture:
        msg = (
            f"the tensors of {new.directory.name:.12} have other names, dtypes or shapes than those that run; "
            "start an engine of its own"
        )
        raise LoadFailed(msg)
    began = time.monotonic()
    limit = STREAM_DRAIN_SECONDS + settings.start_seconds
    await _step(session, f"{url}/pause?mode=wait", {}, seconds=drain_seconds + LATE_SECONDS)
    reload = {"method": "reload_weights", "kwargs": {"weights_path": str(new.directory)}}
    await _step(session, f"{url}/collective_rpc", reload, seconds=limit)
    await _step(session, f"{url}/update_weight_version", {"new_version": new.manifest.digest}, seconds=30)
    await _step(session, f"{url}/reset_prefix_cache", {}, seconds=30)
    await _step(session, f"{url}/resume", {}, seconds=30)
    paused = time.monotonic() - began
    await EngineProbe(session, url, model).canary(pooling=settings.runner == "pooling", seconds=limit)
    return ReloadSeconds(paused, time.monotonic() - began)


def check_alike(running: LocalSnapshot, new: LocalSnapshot) -> None:
    """Raise LoadFailed if the form of the weights, or another file that an engine reads at startup, differs."""
    why = obstacle(running.manifest, new.manifest)
    if why is not None:
        raise LoadFailed(why)
    changed = sorted(changed_beside_weights(running.manifest, new.manifest))
    directories = [verify_snapshot(each) for each in (running, new) if changed]
    for path in changed:
        files = [directory / path for directory in directories]
        both = all(file.is_file() for file in files)
        if not both or not same_model(*(json.loads(file.read_bytes()) for file in files)):
            raise LoadFailed(read_once(path))


async def check_alone(session: HttpSessions, url: str, own: Collection[str]) -> None:
    """Raise LoadFailed if the engine serves more than the model itself.

    Its adapters were made for its current weights.
    """
    answer = await session.call("GET", f"{url}/v1/models", most_bytes=ENGINE_BYTES, seconds=30)
    try:
        names = {str(card["id"]) for card in json.loads(answer.content)["data"]}
    except (ValueError, LookupError, TypeError, RecursionError) as error:
        msg = f"no good answer to GET {url}/v1/models: {error!r}"
        raise Unavailable(msg) from error
    if names != {*own}:
        msg = f"it serves {sorted(names - {*own})} beside the model"
        raise LoadFailed(msg)


async def load_adapter(session: HttpSessions, url: str, name: str, directory: Path, *, again: bool = False) -> None:
    """Load an adapter under a separate model name. `again`: replace the one with that name."""
    body = {"lora_name": name, "lora_path": str(directory), **({"load_inplace": True} if again else {})}
    await _step(session, f"{url}/v1/load_lora_adapter", body, seconds=60)


async def unload_adapter(session: HttpSessions, url: str, name: str) -> None:
    """Unload an adapter."""
    await _step(session, f"{url}/v1/unload_lora_adapter", {"lora_name": name}, seconds=60)


async def _step(session: HttpSessions, url: str, body: Mapping[str, object], *, seconds: float) -> None:
    answer = await session.call("POST", url, body=body, most_bytes=ENGINE_BYTES, seconds=seconds)
    if answer.status != 200:
        msg = f"POST {url} answered {answer.status}: {answer.content[:300].decode(errors='replace')}"
        raise LoadFailed(msg)
