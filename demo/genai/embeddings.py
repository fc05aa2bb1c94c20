"""Meaning as a number: embeddings through Envoy, and how near two of them are."""

import math
from collections.abc import Sequence

import httpx

from ipnext.errors import Unavailable


def embed(gateway: str, model: str, sentences: Sequence[str]) -> Sequence[Sequence[float]]:
    """Return a vector for each sentence. Raises Unavailable if the answer is not 200."""
    body = {"model": model, "input": list(sentences)}
    answer = httpx.post(f"{gateway}/v1/embeddings", json=body, timeout=120, trust_env=False)
    if answer.status_code != 200:
        msg = f"embeddings of {model!r}: HTTP {answer.status_code} {answer.text[:200]}"
        raise Unavailable(msg)
    found = sorted(answer.json()["data"], key=lambda item: item["index"])
    return [item["embedding"] for item in found]


def cosine(one: Sequence[float], other: Sequence[float]) -> float:
    """From -1 to 1; 0 if a vector is zero."""
    size = math.sqrt(math.fsum(a * a for a in one) * math.fsum(b * b for b in other))
    return math.fsum(a * b for a, b in zip(one, other, strict=True)) / size if size else 0.0
