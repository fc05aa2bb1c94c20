"""vLLM's own serving benchmark as a client, unmodified.

`vllm.benchmarks.serve`, run by the interpreter that has vLLM.
"""

import json
import os
import subprocess

PROGRAM = """
from argparse import ArgumentParser
from vllm.benchmarks.serve import add_cli_args, main
parser = ArgumentParser()
add_cli_args(parser)
main(parser.parse_args())
"""
"""What `vllm bench serve` does; the command itself asks for a package named vllm, and its build for CPUs has another
name."""
SECONDS = 300


def benchmarked(vllm, url, *, backend, endpoint, model, tokenizer, folder, requests, output_tokens=None):
    """What it writes down of so many requests, two at a time, of random tokens."""
    result = folder / f"{backend}.json"
    options = {
        "backend": backend,
        "base-url": url,
        "endpoint": endpoint,
        "model": model,
        "tokenizer": tokenizer,
        "dataset-name": "random",
        "random-input-len": 16,
        "num-prompts": requests,
        "max-concurrency": 2,
        "result-filename": result,
    }
    if output_tokens is not None:
        options["random-output-len"] = output_tokens
    words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HOME": str(folder)}
    command = [vllm, "-c", PROGRAM, *words, "--save-result", "--save-detailed"]
    done = subprocess.run(
        command, check=False, env=environment, cwd=folder, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return json.loads(result.read_text())
