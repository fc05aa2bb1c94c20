"""A program that `ipnext dev` may fork. Its argument says how it ends."""

import json
import logging
import os
import signal
import sys
import time
from pathlib import Path


def main():
    how = sys.argv[1]
    print(json.dumps(about()), flush=True)  # noqa: T201 - a test reads the log
    if how == "raises":
        msg = "wrong on purpose"
        raise ValueError(msg)
    if how == "exits":
        sys.exit(4)
    if how == "sleeps":
        time.sleep(600)
    return 3


def about():
    return {
        "forked": __name__ != "__main__",
        "pid": os.getpid(),
        "parent": os.getppid(),
        "leads": os.getsid(0) == os.getpid() == os.getpgrp(),
        "arguments": sys.argv[1:],
        "given": os.environ.get("GIVEN"),
        "inherited": os.environ.get("INHERITED"),
        "ending": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
        "handlers": len(logging.root.handlers),
        "open": sorted({opened(entry) for entry in Path("/proc/self/fd").iterdir()} - {""}),
    }


def opened(entry):
    """Where a descriptor leads; empty for the one that looks."""
    try:
        return str(entry.readlink())
    except OSError:
        return ""


if __name__ == "__main__":
    sys.exit(main())
