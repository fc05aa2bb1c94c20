"""Names of the directories in which hosts listen: those of the same model's hosts begin alike, and no others do.

A host that runs a part of a model calls hosts of its other parts, through its keeper (`serving.host.other_hosts`),
which tells by the name whether a host is one of them. The names are made with a key of the agent, so that a model's
name can't be chosen for the beginning that it gives.
"""

import hmac
from base64 import b32encode
from hashlib import sha256
from typing import Final

_MODEL_LETTERS: Final = 8
LETTERS: Final = 16


def name_host_directory(key: str, *, model: str, host: str) -> str:
    """Return the name of a host's directory."""
    return _digest(key, f"model {model}", _MODEL_LETTERS) + _digest(key, f"host {host}", LETTERS - _MODEL_LETTERS)


def is_of_same_model(one: str, other: str) -> bool:
    """Return whether two names of directories are of hosts of the same model."""
    return len(one) == len(other) == LETTERS and one[:_MODEL_LETTERS] == other[:_MODEL_LETTERS]


def _digest(key: str, text: str, letters: int) -> str:
    return b32encode(hmac.digest(key.encode(), text.encode(), sha256)).decode().lower()[:letters]
