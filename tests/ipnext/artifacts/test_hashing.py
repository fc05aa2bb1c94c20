"""Streams are hashed in full, while the kernel reads files ahead, within bounds."""

import hashlib
import io
import os
from itertools import pairwise
from pathlib import Path

import pytest

from ipnext.artifacts.hashing import hash_stream, read_ahead
from ipnext.errors import ArtifactDigestMismatch
from ipnext.model.registry.registry import SNAPSHOT_FILE, Signature, SnapshotManifest, TensorSpec
from ipnext.model.value import canonical_json
from serving.snapshots.directory import artifact_file, verify_cached, verify_manifest

PIECE = 256 << 10


class ShortReads(io.RawIOBase):
    """A stream that gives at most 7 bytes a read, and fails at a position."""

    def __init__(self, content: bytes, *, fails_at: int) -> None:
        super().__init__()
        self._content, self._fails_at, self._position = content, fails_at, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:  # type: ignore[no-untyped-def]
        if self._position >= self._fails_at:
            msg = "Input/output error"
            raise OSError(5, msg)
        piece = self._content[self._position : self._position + min(len(buffer), 7)]
        memoryview(buffer)[: len(piece)] = piece
        self._position += len(piece)
        return len(piece)


@pytest.mark.parametrize("size", [0, 1, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 7])
def test_all_bytes_of_a_stream_are_hashed(size: int) -> None:
    content = (bytes(range(256)) * (size // 256 + 1))[:size]
    assert hash_stream(io.BytesIO(content)) == (hashlib.sha256(content).hexdigest(), size)


def test_short_reads_lose_no_byte() -> None:
    content = bytes(range(251)) * 20
    stream = ShortReads(content, fails_at=1 << 30)
    assert hash_stream(stream) == (hashlib.sha256(content).hexdigest(), len(content))  # type: ignore[arg-type]


def test_an_error_of_the_stream_is_raised() -> None:
    with pytest.raises(OSError, match="Input/output error"):
        hash_stream(ShortReads(bytes(1000), fails_at=300))  # type: ignore[arg-type]


def test_only_the_rest_of_a_file_is_hashed(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"head, rest")
    with (tmp_path / "file").open("rb") as stream:
        stream.read(6)
        assert hash_stream(stream) == (hashlib.sha256(b"rest").hexdigest(), 4)


def test_the_kernel_reads_a_file_ahead_of_each_piece_and_not_far(tmp_path: Path, monkeypatch) -> None:
    with (tmp_path / "file").open("wb") as file:
        file.truncate(100 << 20)
    ranges: list[tuple[int, int]] = []
    monkeypatch.setattr(os, "posix_fadvise", lambda _, begin, size, __: ranges.append((begin, begin + size)))
    position = 0
    with (tmp_path / "file").open("rb") as stream:
        for piece in read_ahead(stream):
            assert position + len(piece) <= ranges[-1][1] <= position + (32 << 20)
            position += len(piece)
    assert ranges[0][0] == 0
    assert all(former[1] == following[0] for former, following in pairwise(ranges))


def snapshot(directory: Path) -> SnapshotManifest:
    """Write a snapshot with a file of several pieces."""
    tensor = TensorSpec(name="x", datatype="FP32", shape=(-1, 1))
    weights = directory / "model.safetensors"
    weights.write_bytes(bytes(range(256)) * (3 * PIECE // 256) + b"end")
    manifest = SnapshotManifest(
        engine="vllm", signature=Signature(inputs=(tensor,), outputs=(tensor,)), files=(artifact_file(weights),)
    )
    (directory / SNAPSHOT_FILE).write_text(canonical_json(manifest))
    return manifest


@pytest.mark.trust
@pytest.mark.parametrize("change", ["truncated", "byte of the last piece", "byte of the first piece", "longer"])
def test_a_changed_file_of_several_pieces_is_refused(tmp_path: Path, change: str) -> None:
    manifest = snapshot(tmp_path)
    assert verify_manifest(tmp_path) == manifest
    verify_cached(tmp_path, manifest)
    with (tmp_path / "model.safetensors").open("r+b") as stream:
        if change == "truncated":
            stream.truncate(2 * PIECE)
        else:
            position = {"byte of the first piece": 0, "byte of the last piece": manifest.files[0].size_bytes - 1}
            stream.seek(position.get(change, manifest.files[0].size_bytes))
            stream.write(b"?")
    with pytest.raises(ArtifactDigestMismatch):
        verify_manifest(tmp_path)
    with pytest.raises(ArtifactDigestMismatch):
        verify_cached(tmp_path, manifest)
