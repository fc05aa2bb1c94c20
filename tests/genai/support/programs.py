"""Short programs on vLLM's modules, which one process imports for all of them: that takes it ten seconds."""

import json
import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

SERVER = """
import json, os, sys, traceback
import vllm.benchmarks.serve
answers = os.fdopen(os.dup(1), "w")
os.dup2(2, 1)
for line in sys.stdin:
    code, *sys.argv[1:] = json.loads(line)
    child = os.fork()
    if child == 0:
        try:
            exec(code, {"__name__": "__main__"})
            sys.stdout.flush()
            os._exit(0)
        except BaseException:
            traceback.print_exc()
            os._exit(1)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), file=answers, flush=True)
"""


class Programs:
    """Runs each program in a fork of a process that has imported vLLM."""

    def __init__(self, process: "subprocess.Popen[str]", log: Path) -> None:
        self._process = process
        self._log = log

    def run(self, code: str, *arguments: str) -> None:
        """Return once it has ended; AssertionError with its last output if it failed."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._process.stdin.write(json.dumps([code, *arguments]) + "\n")
        self._process.stdin.flush()
        assert self._process.stdout.readline() == "0\n", self._log.read_text()[-4000:]


@contextmanager
def vllm_programs(python: str, directory: Path) -> Iterator[Programs]:
    """With a process of this interpreter; what it needs of a home is below the directory."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HOME": str(directory)}
    command, pipe, log = [python, "-c", SERVER], subprocess.PIPE, directory / "log"
    with (
        log.open("w") as errors,
        subprocess.Popen(
            command, env=environment, cwd=directory, stdin=pipe, stdout=pipe, stderr=errors, text=True
        ) as process,
    ):
        yield Programs(process, log)
