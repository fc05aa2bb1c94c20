"""The end of a process that used Temporal's client: command line, API, worker."""

import os
import sys
from typing import NoReturn

BRIDGE = "temporalio.bridge.temporal_sdk_bridge"


def end_process(status: int) -> NoReturn:
    """Flush the standard streams and end with this exit status.

    If Temporal's client was used, the interpreter does not finalize: the client's threads can abort one that does
    (temporalio/sdk-python#300), with status 134 after a success.
    """
    if BRIDGE not in sys.modules:
        sys.exit(status)
    try:
        sys.stdout.flush()
        sys.stderr.flush()
    finally:
        os._exit(status)
