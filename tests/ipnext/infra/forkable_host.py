"""A host that can be forked. The name of its model says what it does in place of serving, if anything."""

import json
import os
import random
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import stand_in_host
from numpy import random as numpy_random

SLEEPER = [sys.executable, "-c", "import time; time.sleep(60)"]


def preload():
    if "FORKABLE_BROKEN" in os.environ:
        msg = "broken on purpose"
        raise ImportError(msg)
    while not Path(os.environ.get("FORKABLE_GATE", "/")).exists():
        time.sleep(0.01)
    if "FORKABLE_THREAD" in os.environ:
        threading.Thread(target=threading.Event().wait, daemon=True).start()


def main(arguments=None):
    given = sys.argv[1:] if arguments is None else arguments
    model = given[given.index("--id") + 1].partition(".")[0]
    print(json.dumps(about(given)), flush=True)  # noqa: T201 (a test reads the log)
    if model.startswith("ends-"):
        sys.exit(int(model.removeprefix("ends-")))
    if model == "raises":
        msg = "wrong on purpose"
        raise ValueError(msg)
    if model == "parent":
        subprocess.Popen(SLEEPER)
        subprocess.Popen(SLEEPER, start_new_session=True)
    stand_in_host.main(given)


def about(given):
    return {
        "forked": sys.modules["__main__"].__spec__.name == "ipnext.infra.process.fork_server_process",
        "pid": os.getpid(),
        "parent": os.getppid(),
        "leads": os.getsid(0) == os.getpid() == os.getpgrp(),
        "arguments": given,
        "random": random.random(),
        "numpy": numpy_random.random(),  # noqa: NPY002 (that state is what a library may use)
        "threads": threading.active_count(),
        "open": sorted({opened(entry) for entry in Path("/proc/self/fd").iterdir()} - {""}),
        "ending": signal.getsignal(signal.SIGTERM) == signal.SIG_DFL,
        "omp": os.environ.get("OMP_NUM_THREADS"),
    }


def opened(entry):
    """Where a descriptor leads; empty for the one that looks."""
    try:
        return str(entry.readlink())
    except OSError:
        return ""


if __name__ == "__main__":
    main()
