"""Variables by which a region's processes reach the artifact store, such as its credentials: in a file of the agent.

Hosts run programs of snapshots, so their environment has none of them. The processes that fetch for hosts read the
file, which is of the agent's user alone and outside of what a confined host may read.
"""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from ipnext.components.private_files import write_private_file

_PREFIXES: Final = ("AWS_", "BOTO_")
_NAMES: Final = frozenset(
    {"REQUESTS_CA_BUNDLE", "CURL_CA_BUNDLE", *("HTTP_PROXY", "HTTPS_PROXY", "ALL_PROXY", "NO_PROXY")}
)


def store_variables(given: Mapping[str, str]) -> Mapping[str, str]:
    """Return the variables for clients of an artifact store: credentials, CA certificates and proxies."""
    return {name: value for name, value in given.items() if name.startswith(_PREFIXES) or name.upper() in _NAMES}


def write_store_environment(file: Path, variables: Mapping[str, str]) -> None:
    """Write the file, readable by this user alone; remove it if there are no variables."""
    if variables:
        write_private_file(file, json.dumps(variables).encode())
    else:
        file.unlink(missing_ok=True)


def read_store_environment(file: Path) -> Mapping[str, str]:
    """Return the variables of the file. OSError."""
    return {str(name): str(value) for name, value in json.loads(file.read_bytes()).items()}
