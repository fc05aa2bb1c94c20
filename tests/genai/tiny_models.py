"""Calls tiny.py with the interpreter that has vLLM."""

import os
import subprocess
from pathlib import Path

SCRIPT = Path(__file__).parent / "tiny.py"


def tiny_llama(python, directory, *, seed):
    """A tiny random Llama in a directory."""
    return _built(python, directory, "llama", seed)


def tiny_bert(python, directory, *, seed):
    """A tiny random BERT that embeds, in a directory."""
    return _built(python, directory, "bert", seed)


def _built(python, directory, kind, seed):
    environment = {**os.environ, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
    command = [python, str(SCRIPT), str(directory), "--kind", kind, "--seed", str(seed)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-2000:]
    return directory
