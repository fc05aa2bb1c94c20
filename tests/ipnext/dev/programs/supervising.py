"""Starts `python -m preloaded_example HOW` as a child of the embedded platform, and tells how it ends.

`LOG HOW [thread | plain | late]`.
"""

import logging
import os
import signal
import sys
import threading
from pathlib import Path

from ipnext.dev.children import Child
from ipnext.dev.forked_program import locate_command_line, preload


def main():
    log, how, *more = sys.argv[1:]
    signal.signal(signal.SIGTERM, lambda *_: None)
    logging.basicConfig(level=logging.INFO)
    held = Path(log).with_suffix(".held").open("w")  # a child must not have it
    if "late" not in more:
        locate_command_line()
    os.environ["FIRST"] = "2"
    if "plain" not in more:
        preload(["preloaded_example"])
    if "thread" in more:
        threading.Thread(target=threading.Event().wait, daemon=True).start()
    command = [sys.executable, "-m", "preloaded_example", how, "--more"]
    child = Child("example", command, environment={"GIVEN": "1"}, log=Path(log))
    child.start()
    assert child.process is not None
    print(child.process.pid, flush=True)  # noqa: T201 - a test reads it
    if how == "sleeps":
        sys.stdin.readline()
        child.grace_seconds = 600
        child.stop()
    print(child.process.wait(), child.poll(), flush=True)  # noqa: T201 - a test reads it
    held.close()


if __name__ == "__main__":
    main()
