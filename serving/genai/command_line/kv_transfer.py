"""vLLM's arguments if prefill and decode are two parts: its connector, its role, and the shared storage. Pure.

Names as in vLLM 0.32: `ExampleConnector` (files of keys and values by the tokens of the prompt) and `NixlConnector`.
"""

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, Final

from ipnext.model.settings.engine import VllmSettings
from ipnext.model.settings.kv_transfer import KvConnector, KvRole

_CONNECTORS: Final[Mapping[KvConnector, str]] = {"example": "ExampleConnector", "nixl": "NixlConnector"}
_ROLES: Final[Mapping[KvRole, str]] = {"prefill": "kv_producer", "decode": "kv_consumer"}

SIDE_CHANNEL_HOST: Final = "VLLM_NIXL_SIDE_CHANNEL_HOST"
"""Environment variable: the address for transfers of an engine. Set in the host's environment, never by a manifest."""
SIDE_CHANNEL_PORT: Final = 5600
"""vLLM's default: free on a host that runs one engine."""


def transfer_arguments(settings: VllmSettings, storage: Path | None) -> Iterator[str]:
    """Yield the arguments of an engine of a pair.

    `storage`: the directory that both engines of an example pair share.
    """
    transfer = settings.kv_transfer
    if transfer is None:
        return
    config: dict[str, Any] = {"kv_connector": _CONNECTORS[transfer.connector], "kv_role": _ROLES[transfer.role]}
    if transfer.connector == "example":
        config["kv_connector_extra_config"] = {"shared_storage_path": str(storage)}
    elif transfer.role == "decode":
        config["kv_load_failure_policy"] = "recompute"  # vLLM's default fails the request
    yield from ("--kv-transfer-config", json.dumps(config))
    if transfer.connector == "example":
        # It processes each prompt in one piece, and ignores tokens that the engine itself has cached.
        yield "--no-enable-chunked-prefill"
        if settings.enable_prefix_caching is None:
            yield "--no-enable-prefix-caching"


def transfer_environment(settings: VllmSettings, *, host: str, port: int) -> Mapping[str, str]:
    """Return the address at which others reach an engine with device-to-device transfer.

    The host's address, a separate port.
    """
    if settings.kv_transfer is None or settings.kv_transfer.connector != "nixl":
        return {}
    return {SIDE_CHANNEL_HOST: host, "VLLM_NIXL_SIDE_CHANNEL_PORT": str(port)}
