"""A model whose graph is embedding, ranking, generation.

Its manifest, and a ranker whose answers carry its snapshot.
"""

import copy

EMBED_SIZE = 4
"""Of the mock engine's vectors: length, words, 1, stamp."""

PROMPT = {
    "template": "Documents:\n{documents}Question: {prompt}\n",
    "lists": {
        "documents": {
            "item": "[{number}] {text} score={score} embedder={embedder} question={question} ranker={ranker}\n",
            "order": "score",
            "top": 2,
        }
    },
}
GRAPH = {
    "nodes": [
        {"name": "question", "part": "embedder", "inputs": {"prompt": "request.prompt"}},
        {"name": "embed", "part": "embedder", "inputs": {"prompt": "request.documents"}},
        {"name": "rank", "part": "ranker", "inputs": {"query": "question.embedding", "documents": "embed.embedding"}},
        {
            "name": "generate",
            "part": "llm",
            "inputs": {
                "prompt": "request.prompt",
                "text": "request.documents",
                "score": "rank.score",
                "embedder": "rank.embedder",
                "question": "rank.question",
                "ranker": "rank.ranker",
            },
            "prompt": PROMPT,
        },
    ],
    "outputs": {"text": "generate.text"},
}
_MANIFEST = {
    "apiVersion": "ipnext/v1",
    "kind": "Model",
    "metadata": {"name": "answers", "owner": "tests"},
    "spec": {
        "task": "generation",
        "parts": [
            {
                "name": "embedder",
                "engine": "vllm",
                "settings": {"runner": "pooling"},
                "hardware": [{"kind": "cpu", "units": 1, "qps": 50}],
            },
            {"name": "ranker", "engine": "torch", "hardware": [{"kind": "cpu", "units": 1, "qps": 50}]},
            {"name": "llm", "engine": "vllm", "hardware": [{"kind": "cpu", "units": 1, "qps": 50}]},
        ],
        "graph": GRAPH,
        "demand": [{"region": "us-east", "qps": 20}],
        "latencyToleranceMs": 500,
        "rollout": {"canary": 0.5, "maxStep": 0.5, "deadlineSeconds": 180},
    },
}


def manifest(**spec):
    """The manifest as plain data; `spec` replaces fields."""
    document = copy.deepcopy(_MANIFEST)
    document["spec"].update(spec)
    return document
