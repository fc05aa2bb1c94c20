"""An interpreter with vLLM whose engines fork: a virtual environment in front of the one that has vLLM.

On a CPU vLLM ignores VLLM_WORKER_MULTIPROC_METHOD, which IPnext sets to `fork`, and starts an engine's core and its
worker as fresh interpreters; another one inspects the class of the model. Each imports what the server has imported:
three quarters of the processor time of a start. A plugin of vLLM, which this environment has, puts the variable back,
and inspects the class in place. With one OpenMP thread there is no pool of threads that a fork would lose.

The imports of the server are most of what is left. What no test of engines uses, they leave out or make later: see
tests.genai.support.vllm_imports.

For a second after each message, the core and the worker of an engine poll the memory that they share, on a processor of
their own: three quarters of the processor time of tests with few tokens. The plugin has them sleep between two looks,
the longer the last message is ago.

Core and worker unfreeze and collect all objects before they end, which copies the memory that they share with the
server, in a second of each. The plugin lets frozen objects stay so.
"""

import subprocess
from pathlib import Path

from tests.genai.support import vllm_imports

PLUGIN = '''
"""Let an engine on a CPU use what its server has imported."""

import gc
import os
import time

METHOD = "VLLM_WORKER_MULTIPROC_METHOD"
SHORTEST_SECONDS, LONGEST_SECONDS = 0.0005, 0.02
LATENESS = 0.25


def share_imports():
    from vllm.distributed.device_communicators import shm_broadcast
    from vllm.model_executor.models import registry
    from vllm.platforms.cpu import CpuPlatform

    update = CpuPlatform.check_and_update_config

    def check_and_update_config(cls, vllm_config):
        given = os.environ.get(METHOD)
        update(vllm_config)
        if given:
            os.environ[METHOD] = given

    CpuPlatform.check_and_update_config = classmethod(check_and_update_config)
    registry._run_in_subprocess = lambda inspect: inspect()
    share_processor(shm_broadcast)
    gc.freeze()
    gc.unfreeze = gc.freeze
    gc.enable()


def share_processor(shm_broadcast):
    wait_idle = shm_broadcast.SpinCondition.wait

    def wait(self, timeout_ms=None):
        idle = time.monotonic() - self.last_read
        if idle > self.busy_loop_s:
            wait_idle(self, timeout_ms)
        else:
            time.sleep(min(LONGEST_SECONDS, max(SHORTEST_SECONDS, LATENESS * idle)))

    shm_broadcast.SpinCondition.wait = wait
    shm_broadcast.sched_yield = lambda: time.sleep(SHORTEST_SECONDS)
'''
NAME = "ipnext_test_engines"
IMPORTS = "ipnext_test_imports"
ENTRY_POINTS = f"[vllm.general_plugins]\nshare_imports = {NAME}:share_imports\n"
METADATA = f"Metadata-Version: 2.1\nName: {NAME}\nVersion: 1\n"
BEFORE_IMPORTS = f"import gc; gc.disable(); import {IMPORTS}"
"""While modules are imported, a fifth of the time goes into garbage collections; the plugin is called afterwards."""


def forking_vllm(python, directory):
    """Make the environment in a directory, and return its interpreter."""
    subprocess.run([python, "-m", "venv", "--without-pip", directory], check=True, timeout=300)
    where = [python, "-c", "import sysconfig; print(sysconfig.get_path('purelib'))"]
    found = subprocess.run(where, check=True, capture_output=True, text=True, timeout=300).stdout.strip()
    (packages,) = directory.glob("lib/python3*/site-packages")
    (packages / "vllm.pth").write_text(f"{found}\n{BEFORE_IMPORTS}\n")
    (packages / f"{NAME}.py").write_text(PLUGIN)
    (packages / f"{IMPORTS}.py").write_text(Path(vllm_imports.__file__).read_text())
    information = packages / f"{NAME}-1.dist-info"
    information.mkdir()
    (information / "METADATA").write_text(METADATA)
    (information / "entry_points.txt").write_text(ENTRY_POINTS)
    forking = str(directory / "bin" / "python")
    subprocess.run([forking, "-m", IMPORTS], check=True, timeout=300)
    return forking
