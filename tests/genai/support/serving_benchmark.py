"""vLLM's own serving benchmark as a client, unmodified: `vllm.benchmarks.serve`."""

import json

PROGRAM = """
import json, sys
from argparse import ArgumentParser
from vllm.benchmarks.serve import add_cli_args, main
parser = ArgumentParser()
add_cli_args(parser)
main(parser.parse_args(sys.argv[1:]))
"""
"""What `vllm bench serve` does; the command itself asks for a package named vllm, and its build for CPUs has another
name."""


def benchmarked(programs, url, endpoints, *, model, tokenizer, folder, requests, output_tokens=None):
    """Backend -> what it writes down of so many requests, two at a time, of random tokens. `endpoints`: by backend."""
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
    for backend, endpoint in endpoints.items():
        options = given | {"backend": backend, "endpoint": endpoint, "result-filename": results[backend]}
        words = [word for name, value in options.items() for word in (f"--{name}", str(value))]
        programs.run(PROGRAM, *words, "--save-result", "--save-detailed")
    return {backend: json.loads(result.read_text()) for backend, result in results.items()}
