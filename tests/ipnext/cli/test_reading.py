"""Tables of what is read, from plain values."""

import io

from rich.console import Console

from ipnext.cli.reading import parts_table
from ipnext.model.manifest import parse_manifest


def test_parts_are_told_with_their_engines_and_adapters_with_the_name_that_clients_ask_for():
    llm = {"name": "llm", "engine": "vllm", "hardware": [{"kind": "cpu", "units": 1, "qps": 1}]}
    spec = {"task": "generation", "demand": [{"region": "eu", "qps": 1}]}
    spec |= {"parts": [llm, {"name": "style", "engine": "vllm", "adapterOf": "llm"}]}
    document = {"apiVersion": "ipnext/v1", "kind": "Model", "metadata": {"name": "chat", "owner": "a"}, "spec": spec}

    console = Console(width=100, record=True, file=io.StringIO())
    console.print(parts_table(parse_manifest(document)))

    lines = [line.split() for line in console.export_text().splitlines() if line.split()]
    assert lines[-3:] == [
        ["part", "engine", "asked", "as"],
        ["llm", "vllm", "-"],
        ["style", "adapter", "on", "llm", "chat:style"],
    ]
