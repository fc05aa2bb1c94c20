"""Transfer of keys and values from the part that reads prompts to the part that writes the answers.

The setting `kvTransfer`.
"""

from typing import Final, Literal

from ipnext.model.value import Name, Value, WrittenValue

KvConnector = Literal["example", "nixl"]
KvRole = Literal["prefill", "decode"]

TRANSFER_ARGUMENTS: Final = ("--kv-transfer-config", "--enable-chunked-prefill", "--no-enable-chunked-prefill")
"""Arguments of vLLM that IPnext sets itself if a part has `kvTransfer`."""


class KvTransferSettings(WrittenValue):
    """Written as `kvTransfer: {connector: nixl, role: prefill}`."""

    connector: KvConnector
    """`example`: files in a directory that both parts see, for trying it out; `nixl`: from one device to the other."""
    role: KvRole
    """`prefill`: reads prompts; `decode`: writes the answers."""


class Handoff(Value):
    """The two parts of a model that answer a request one after the other."""

    prefill: Name
    decode: Name
    connector: KvConnector
