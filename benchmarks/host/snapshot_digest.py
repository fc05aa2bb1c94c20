"""How fast a large snapshot is digested, signed and verified, against reading its files.

    .venv/bin/python -m benchmarks.host.snapshot_digest --gigabytes 10 --files 4 --rounds 3 [--cached]

A snapshot of so many random bytes lies in a temporary directory. In turns, each in a process of its own: its files are
read from the beginning to the end, in pieces of 1 MiB (the baseline); they are digested for a manifest, whose digest is
signed; and the snapshot is verified as by a host that loads it, the signature included. Before each turn the kernel is
asked to forget the files; with `--cached` they are read once more instead, so that no disk counts.

Reported are the medians of the rounds, each as a share of the speed of reading, and the largest memory of a process.
"""

import argparse
import json
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Final

from ipnext.artifacts.signing import check_signature, sign_digest, signature_in, write_key_pair
from ipnext.model.registry.registry import SIGNATURE_FILE, SNAPSHOT_FILE, Signature, SnapshotManifest, TensorSpec
from ipnext.model.registry.signing import SignerPolicy
from ipnext.model.value import canonical_json
from serving.snapshots.directory import artifact_file, verify_manifest, write_last

PIECE_BYTES: Final = 1 << 20
SIGNATURE: Final = Signature(
    inputs=(TensorSpec(name="x", datatype="FP32", shape=(-1, 1)),),
    outputs=(TensorSpec(name="y", datatype="FP32", shape=(-1, 1)),),
)
PRIVATE, PUBLIC = "key.pem", "key.pub.pem"


def write_weights(snapshot: Path, files: int, size_bytes: int) -> None:
    """Write files of random bytes."""
    snapshot.mkdir()
    block = os.urandom(8 << 20)
    for number in range(files):
        with (snapshot / f"model-{number:05}.safetensors").open("wb") as stream:
            left = size_bytes // files
            while left:
                left -= stream.write(block[: min(left, len(block))])
                block = block[1:] + block[:1]
            os.fsync(stream.fileno())


def weights(snapshot: Path) -> list[Path]:
    """Return the files of random bytes, in order."""
    return sorted(snapshot.glob("*.safetensors"))


def read(snapshot: Path) -> None:
    """Read all files."""
    piece = bytearray(PIECE_BYTES)
    for file in weights(snapshot):
        with file.open("rb", buffering=0) as stream:
            while stream.readinto(piece):
                pass


def digest(snapshot: Path) -> None:
    """Digest all files, write the manifest, and sign it."""
    files = tuple(map(artifact_file, weights(snapshot)))
    manifest = SnapshotManifest(engine="vllm", signature=SIGNATURE, files=files)
    write_last(snapshot / SNAPSHOT_FILE, canonical_json(manifest))
    envelope = sign_digest(manifest.digest, snapshot.parent / PRIVATE)
    (snapshot / SIGNATURE_FILE).write_bytes(envelope.content)


def verify(snapshot: Path) -> None:
    """Verify all files, and the signature."""
    manifest = verify_manifest(snapshot)
    policy = SignerPolicy(public_keys=((snapshot.parent / PUBLIC).read_text(),))
    check_signature(policy, manifest.digest, signature_in(snapshot), "the snapshot")


STEPS: Final[Mapping[str, Callable[[Path], None]]] = {"read": read, "digest": digest, "verify": verify}


def forget(snapshot: Path) -> None:
    """Ask the kernel to drop the files from its cache."""
    for file in weights(snapshot):
        with file.open("rb") as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)


def time_step(name: str, snapshot: Path) -> tuple[float, float]:
    """Run a step in a process of its own; return its seconds and its memory in MiB."""
    command = [sys.executable, "-m", __spec__.name, "--step", name, str(snapshot)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, mib = map(float, done.stdout.split())
    return seconds, mib


def run_step(name: str, snapshot: Path) -> None:
    """Run a step here, and print its seconds and the memory of this process in MiB."""
    began = time.perf_counter()
    STEPS[name](snapshot)
    seconds = time.perf_counter() - began
    print(seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)


def measure(directory: Path, gigabytes: float, files: int, rounds: int, *, cached: bool) -> Mapping[str, float]:
    """Return the figures of all rounds."""
    snapshot, size_bytes = directory / "snapshot", int(gigabytes * 1e9)
    write_key_pair(directory / PRIVATE, directory / PUBLIC)
    write_weights(snapshot, files, size_bytes)
    seconds: dict[str, list[float]] = {name: [] for name in STEPS}
    memory: dict[str, list[float]] = {name: [] for name in STEPS}
    for _ in range(rounds):
        for name in STEPS:
            (read if cached else forget)(snapshot)
            taken, mib = time_step(name, snapshot)
            seconds[name].append(taken)
            memory[name].append(mib)
    median = {name: statistics.median(taken) for name, taken in seconds.items()}
    found = {f"{name}, GB/s": size_bytes / 1e9 / taken for name, taken in median.items()}
    found |= {f"{name}, share of reading": median["read"] / taken for name, taken in median.items() if name != "read"}
    return found | {f"{name}, largest MiB": max(used) for name, used in memory.items()}


def main() -> None:
    """Measure, and print the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--gigabytes", type=float, default=10.0)
    parser.add_argument("--files", type=int, default=4)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--cached", action="store_true", help="read the files before each turn")
    parser.add_argument("--directory", type=Path, help="where the snapshot is written; default: a temporary directory")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--step", nargs=2, metavar=("NAME", "SNAPSHOT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.step:
        run_step(given.step[0], Path(given.step[1]))
        return
    place = Path(tempfile.mkdtemp(prefix="ipnext-digest-", dir=given.directory))
    try:
        found = measure(place, given.gigabytes, given.files, given.rounds, cached=given.cached)
    finally:
        shutil.rmtree(place)
    print(f"{given.gigabytes:g} GB in {given.files} files{', cached' if given.cached else ''}")
    for name, figure in found.items():
        print(f"  {name:<28}{figure:10.2f}")
    if given.json is not None:
        given.json.write_text(json.dumps(found, indent=2), encoding="utf-8")


if __name__ == "__main__":
    main()
