"""Calls tiny.py with the interpreter that has vLLM."""

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parent / "tiny.py"


def tiny_llamas(python, directories, *, seed=1):
    """Tiny random Llamas in directories, from this seed on.

    One process builds all: to import its libraries takes it seconds.
    """
    _build(python, directories, "llama", seed)


def tiny_bert(python, directory, *, seed):
    """A tiny random BERT that embeds, in a directory."""
    _build(python, [directory], "bert", seed)
    return directory


def _build(python, directories, kind, seed):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [python, str(SCRIPT), *map(str, directories), "--kind", kind, "--seed", str(seed)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
