"""Validator of weights: every number in every safetensors file is finite. Read as a stream, a few megabytes at a time.

The format: eight bytes with the header's length (little-endian), a JSON header that gives each tensor's dtype, shape
and position, then the tensors' bytes. torch is not needed: BF16 and the 8-bit floats are judged by their bits.
"""

from collections.abc import Callable, Iterator, Mapping
from typing import BinaryIO

import numpy as np

from activities.validation.documents.parsing import Parse, parse_at_once
from activities.validation.validator import CHUNK_BYTES, Candidate, fail_check, pass_check
from ipnext.artifacts.checkpoints.tensor_headers import HeaderSum, MalformedTensors, exactly, read_places, size_fault
from ipnext.model.lifecycle.checks import CheckResult
from ipnext.model.lifecycle.status import Reason
from ipnext.model.registry.registry import ArtifactFile

FINITE = "finite-weights"

Finite = Callable[[bytes], bool]
_FileCheck = Callable[[Candidate, ArtifactFile, str, HeaderSum], CheckResult]


def check_finite(candidate: Candidate) -> Iterator[CheckResult]:
    """Yield one result for each safetensors file; a refusal names part and tensor. Each blob is read once."""
    return _check_files(candidate, "checking", _check_tensors)


def check_headers(candidate: Candidate) -> Iterator[CheckResult]:
    """Refuse files by header and size alone, as `check_finite` does, without reading weights.

    Each blob is read once.
    """
    return _check_files(candidate, "reading the header of", _check_header)


def _check_files(candidate: Candidate, doing: str, check: _FileCheck) -> Iterator[CheckResult]:
    judged: dict[str, CheckResult] = {}
    for part, snapshot in sorted(candidate.snapshots.items()):
        headers = HeaderSum()
        for file in snapshot.manifest.files:
            if not file.path.endswith(".safetensors"):
                continue
            subject = f"{part}/{file.path}"
            candidate.beat(f"{doing} {subject}")
            if file.sha256 not in judged:
                judged[file.sha256] = check(candidate, file, subject, headers)
            yield judged[file.sha256].model_copy(update={"subject": subject})


def _check_header(candidate: Candidate, file: ArtifactFile, subject: str, headers: HeaderSum) -> CheckResult:
    with candidate.open(file.sha256) as stream:
        try:
            places, _ = read_places(stream, file.size_bytes, parse=candidate.parse, headers=headers)
        except MalformedTensors as error:
            return fail_check(FINITE, subject, Reason.UNSAFE_FORMAT, f"is no safetensors file: {error}")
    fault = next(filter(None, (size_fault(name, place) for name, place in places.items())), "")
    return fail_check(FINITE, subject, Reason.UNSAFE_FORMAT, fault) if fault else pass_check(FINITE, subject)


def non_finite_tensor(
    stream: BinaryIO,
    size_bytes: int,
    beat: Callable[[str], None],
    parse: Parse = parse_at_once,
    headers: HeaderSum | None = None,
) -> str | None:
    """Return the name of the first tensor that holds NaN or infinity; None if all are finite.

    Raises MalformedTensors.
    """
    places, start = read_places(stream, size_bytes, parse=parse, headers=headers)
    position = start
    for name, place in places.items():
        if fault := size_fault(name, place):
            raise MalformedTensors(fault)
        check = _FINITE.get(place.dtype)
        for _ in pieces_of(stream, start + place.begin - position):
            beat(f"looking for tensor {name}")
        for piece in pieces_of(stream, place.end - place.begin):
            beat(f"checking tensor {name}")
            if check is not None and not check(piece):
                return name
        position = start + place.end
    return None


def pieces_of(stream: BinaryIO, count: int) -> Iterator[bytes]:
    """Yield the next bytes of a stream, CHUNK_BYTES at a time. Raises MalformedTensors if there are fewer."""
    while count:
        piece = exactly(stream, min(count, CHUNK_BYTES))
        count -= len(piece)
        yield piece


def _check_tensors(candidate: Candidate, file: ArtifactFile, subject: str, headers: HeaderSum) -> CheckResult:
    try:
        with candidate.open(file.sha256) as stream:
            name = non_finite_tensor(stream, file.size_bytes, candidate.beat, candidate.parse, headers)
    except MalformedTensors as error:
        return fail_check(FINITE, subject, Reason.UNSAFE_FORMAT, f"is no safetensors file: {error}")
    if name is None:
        return pass_check(FINITE, subject)
    part = subject.partition("/")[0]
    message = f"tensor {name!r} of part {part!r} holds NaN or infinity; train or export it again"
    return fail_check(FINITE, subject, Reason.NON_FINITE_WEIGHTS, message)


def _by_numpy(dtype: str) -> Finite:
    return lambda chunk: bool(np.isfinite(np.frombuffer(chunk, dtype=dtype)).all())


def _by_bits(dtype: str, exponent: int) -> Finite:
    """Build a check by bits: a number is not finite if all bits of its exponent are set."""
    return lambda chunk: not bool(((np.frombuffer(chunk, dtype=dtype) & exponent) == exponent).any())


def _e4m3(chunk: bytes) -> bool:
    """Check OCP 8-bit floats of 4 exponent and 3 mantissa bits: there is no infinity, and S.1111.111 is NaN."""
    return not bool(((np.frombuffer(chunk, dtype="u1") & 0x7F) == 0x7F).any())


_FINITE: Mapping[str, Finite] = {
    "F64": _by_numpy("<f8"),
    "F32": _by_numpy("<f4"),
    "F16": _by_numpy("<f2"),
    "C64": _by_numpy("<c8"),
    "BF16": _by_bits("<u2", 0x7F80),
    "F8_E5M2": _by_bits("u1", 0x7C),
    "F8_E4M3": _e4m3,
}
"""Safetensors dtype -> function that is true if a chunk is finite. Integers and booleans always are. CHUNK_BYTES is a
multiple of all sizes.
"""
