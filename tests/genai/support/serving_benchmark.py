"""vLLM's own serving benchmark as a client, unmodified.

`vllm.benchmarks.serve`, run by the interpreter that has vLLM.
"""

import json
import os
import subprocess

PROGRAM = """
import json, sys
from argparse import ArgumentParser
from vllm.benchmarks.serve import add_cli_args, main
parser = ArgumentParser()
add_cli_args(parser)
for words in json.loads(sys.argv[1]):
    main(parser.parse_args(words))
"""
"""What `vllm bench serve` does, once for each list of words; the command itself asks for a package named vllm, and its
build for CPUs has another name."""
SECONDS = 300


def benchmarked(vllm, url, endpoints, *, model, tokenizer, folder, requests, output_tokens=None):
    """Backend -> what it writes down of so many requests, two at a time, of random tokens. `endpoints`: by backend.

    One process does all: to import its libraries takes it seconds.
    """
    results = {backend: folder / f"{backend}.json" for backend in endpoints}
    given = {
        "base-url": url,
        "model": model,
        "tokenizer": tokenizer,
        "dataset-name": "random",
        "random-input-len": 16,
        "num-prompts": requests,
        "max-concurrency": 2,
    }
    if output_tokens is not None:
        given["random-output-len"] = output_tokens
    runs = []
    for backend, endpoint in endpoints.items():
        options = given | {"backend": backend, "endpoint": endpoint, "result-filename": results[backend]}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        runs.append([*words, "--save-result", "--save-detailed"])
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "HOME": str(folder)}
    command = [vllm, "-c", PROGRAM, json.dumps(runs)]
    done = subprocess.run(
        command, check=False, env=environment, cwd=folder, capture_output=True, text=True, timeout=SECONDS
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    return {backend: json.loads(result.read_text()) for backend, result in results.items()}
