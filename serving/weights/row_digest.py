"""An incremental digest of a tensor: a change of some rows updates it at the cost of these rows alone.

Each row, with its index, is hashed to 128 bits, and the digest is the sum of all hashes, modulo 2**64 in each of two
lanes: a row is replaced by subtracting its old hash and adding the new one. The idea is AdHash (Bellare and Micciancio,
"A New Paradigm for Collision-free Hashing: Incrementality at Reduced Cost", EUROCRYPT 1997). The hash of a row is built
for speed: words are mixed by the finaliser of SplitMix64 (Steele, Lea and Flood, "Fast Splittable Pseudorandom Number
Generators", OOPSLA 2014) and summed, in one lane unchanged and in the other times an odd constant of their position.

It detects accidents: a row lost, doubled, swapped or damaged, or a delta on another parent, goes unnoticed with a
probability of about 2**-128. It does not detect attacks: it has no key, and sums of this width can be forged (Wagner's
generalised birthday attack). Protection against an attacker is the SHA-256 of the delta's files and the digest of the
parent.
"""

from collections.abc import Iterator
from typing import Final

import numpy as np
import torch
from numpy.typing import NDArray

Words = NDArray[np.uint64]
Digest = tuple[int, int]
"""Two lanes of 64 bits."""

ZERO: Final[Digest] = (0, 0)
_CHUNK_BYTES: Final = 1 << 18
"""Rows are hashed in pieces that fit into a processor's cache."""
_STEP: Final = np.uint64(0x9E3779B97F4A7C15)
_FIRST: Final = np.uint64(0xBF58476D1CE4E5B9)
_SECOND: Final = np.uint64(0x94D049BB133111EB)
_LANES: Final = (np.uint64(0x243F6A8885A308D3), np.uint64(0x13198A2E03707344))
"""Digits of pi, without further meaning."""


def digest_of_rows(rows: torch.Tensor, indices: torch.Tensor | None = None) -> Digest:
    """Return the sum of the hashes of `rows` (dimension 0) at `indices` of their tensor; without indices: from 0 on."""
    total = ZERO
    for start, words in _chunks(rows):
        places = (
            np.arange(start, start + len(words)) if indices is None else indices[start : start + len(words)].numpy()
        )
        total = add_digests(total, _sum_rows(words, places.astype(np.uint64)))
    return total


def add_digests(left: Digest, right: Digest) -> Digest:
    """Return the digest of both sets of rows together."""
    return (left[0] + right[0]) % 2**64, (left[1] + right[1]) % 2**64


def subtract_digests(left: Digest, right: Digest) -> Digest:
    """Return the digest of `left` without the rows of `right`."""
    return (left[0] - right[0]) % 2**64, (left[1] - right[1]) % 2**64


def as_text(digest: Digest) -> str:
    """Format a digest as 32 hexadecimal digits."""
    return f"{digest[0]:016x}{digest[1]:016x}"


def from_text(text: str) -> Digest:
    """Parse the digest from the text of `as_text`."""
    return int(text[:16], 16), int(text[16:], 16)


def as_rows(tensor: torch.Tensor) -> torch.Tensor:
    """Return the tensor's bytes as (rows, bytes of a row), in the same memory; a scalar is one row."""
    rows = tensor.shape[0] if tensor.dim() else 1
    flat = tensor.detach().reshape(-1).view(torch.uint8)
    return flat.reshape(rows, flat.numel() // rows if rows else 0)


def _chunks(tensor: torch.Tensor) -> Iterator[tuple[int, Words]]:
    """Yield first row and words of each piece; the last word of a row is padded with zeros."""
    rows = as_rows(tensor).numpy()
    count, width = rows.shape
    step = max(1, _CHUNK_BYTES // max(width, 1))
    for start in range(0, count, step):
        piece = rows[start : start + step]
        if width % 8:
            piece = np.pad(piece, ((0, 0), (0, -width % 8)))
        yield start, np.ascontiguousarray(piece).view(np.uint64)


def _sum_rows(words: Words, places: Words) -> Digest:
    constants = _mix((np.arange(words.shape[1], dtype=np.uint64) + np.uint64(1)) * _STEP)
    mixed = _mix(words + constants)
    lanes = mixed.sum(1, dtype=np.uint64), mixed @ (constants | np.uint64(1))
    spread = (places + np.uint64(1)) * _STEP
    sums = [_mix(lane + _mix(spread ^ seed)).sum(dtype=np.uint64) for lane, seed in zip(lanes, _LANES, strict=True)]
    return int(sums[0]), int(sums[1])


def _mix(words: Words) -> Words:
    """Scramble each word one-to-one; `words` is overwritten."""
    shifted = words >> np.uint64(30)
    words ^= shifted
    words *= _FIRST
    np.right_shift(words, np.uint64(27), out=shifted)
    words ^= shifted
    words *= _SECOND
    np.right_shift(words, np.uint64(31), out=shifted)
    words ^= shifted
    return words
