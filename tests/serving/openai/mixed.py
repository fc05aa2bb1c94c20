"""The model of tests.mixed before a router.

What a table says of it, and engines that embed or generate as a test wants.
"""

import base64
import json
import struct
from datetime import UTC, datetime, timedelta

from ipnext.model.deployment.router_table import PartEndpoint, RoutedModel
from ipnext.model.deployment.served_generation import ServedGeneration, SnapshotFacts
from ipnext.model.registry.registry import PartGraph, TensorSpec
from tests.mixed import GRAPH

MODEL = "answers"
PARTS = ("embedder", "ranker", "llm")
COMPLETIONS, CHAT = "/v1/completions", "/v1/chat/completions"
DOCUMENTS = ["short", "the longest of all", "of middle size"]
DEAD = "http://127.0.0.1:9"
"""Nothing listens there."""


def served(number, *, sync=None, graph=None, inputs=None):
    """A generation of the snapshots of its number, which came an hour apart and have one signature."""
    at = datetime(2026, 1, 1, tzinfo=UTC) + timedelta(hours=number)
    return ServedGeneration(
        generation=number,
        graph=PartGraph.model_validate(graph or GRAPH),
        snapshots=dict.fromkeys(PARTS, number),
        engines={"embedder": "vllm", "llm": "vllm"},
        facts={part: SnapshotFacts(created_at=at, signature=part) for part in PARTS},
        inputs=(TensorSpec(name="documents", datatype="BYTES", shape=(-1,)),) if inputs is None else inputs,
        **({} if sync is None else {"sync": sync}),
    )


def routed(*generations, sync=None, **urls):
    """`urls`: part -> {url: its generations}, or urls that answer for all of them."""
    endpoints = [
        PartEndpoint(part=part, url=url, generations=tuple(numbers))
        for part, found in urls.items()
        for url, numbers in (found if isinstance(found, dict) else dict.fromkeys(found, generations)).items()
        if numbers
    ]
    return RoutedModel(
        model=MODEL, served=tuple(served(number, sync=sync) for number in generations), endpoints=tuple(endpoints)
    )


def completion(**more):
    return {"model": MODEL, "prompt": "which?", "max_tokens": 2, "inputs": {"documents": DOCUMENTS}, **more}


def chat(**more):
    messages = [{"role": "system", "content": "be short"}, {"role": "user", "content": "which?"}]
    return {"model": MODEL, "messages": messages, "max_tokens": 2, "inputs": {"documents": DOCUMENTS}, **more}


def wanted_prompt(*, number=1):
    """What the generator gets of DOCUMENTS."""
    told = f"embedder={number} question={number} ranker={number}"
    return f"Documents:\n[1] the longest of all score=18 {told}\n[2] of middle size score=14 {told}\nQuestion: which?\n"


def vectors(body, stamp):
    """The answer of an engine that embeds as the mock does, written backwards: places count, not the order."""
    rows = [struct.pack("<4f", len(text), len(text.split()), 1, stamp) for text in json.loads(body)["input"]]
    data = [{"index": place, "embedding": base64.b64encode(row).decode()} for place, row in enumerate(rows)]
    return {"object": "list", "data": data[::-1]}


def write(writer, status, answer):
    content = json.dumps(answer).encode()
    writer.write(f"HTTP/1.1 {status} X\r\ncontent-length: {len(content)}\r\n\r\n".encode() + content)


def embedding(stamp=1):
    """A script for raw_engine."""

    async def script(_, path, body, writer):
        assert path == b"/v1/embeddings"
        write(writer, 200, vectors(body, stamp))

    return script


def refusing(status, message="no"):
    """A script for raw_engine."""

    async def script(_, __, ___, writer):
        write(writer, status, {"error": {"message": message, "code": status}})

    return script


async def hanging(_, __, ___, ____):
    """A script for raw_engine: it does not answer."""


async def generating(_, __, ___, writer):
    """A script for raw_engine."""
    write(writer, 200, {"choices": [{"text": "so"}]})
