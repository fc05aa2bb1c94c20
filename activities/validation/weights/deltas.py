"""Validator of delta snapshots.

The parent is a snapshot of the same part, and each changed tensor fits the full weights.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from typing import BinaryIO

import numpy as np

from activities.validation.validator import Candidate, fail_check, pass_check
from activities.validation.weights.finite_weights import pieces_of
from ipnext.artifacts.bounded_json import read_document
from ipnext.artifacts.checkpoints.tensor_headers import MalformedTensors, TensorPlace, read_places
from ipnext.artifacts.layout import snapshot_uri
from ipnext.errors import ArtifactError, InvalidInput
from ipnext.model.lifecycle.checks import CheckResult
from ipnext.model.lifecycle.status import Reason
from ipnext.model.registry.delta import DELTA_FILES, ROWS, VALUES, WHOLE, ChangedTensor, DeltaDocument
from ipnext.model.registry.registry import DELTA_FILE, DELTA_WEIGHTS_FILE, Snapshot

DELTAS = "deltas"
BASE_WEIGHTS_FILE = "weights.safetensors"
LARGEST_DOCUMENT_BYTES = 8 << 20
MOST_SEPARATORS = 150_000
"""Of `delta.json`: about 30,000 tensors."""
ROW_NUMBER_BYTES = 8
MOST_NAMED = 10
"""Tensors that a refusal names."""

Forms = Mapping[str, TensorPlace]


class _Refused(Exception):
    """A delta that cannot be served, and the reason."""

    def __init__(self, reason: Reason, message: str) -> None:
        super().__init__(message)
        self.reason = reason
        self.message = message


def check_deltas(candidate: Candidate) -> Iterator[CheckResult]:
    """Yield one result for each delta snapshot; full ones are skipped."""
    for part, snapshot in sorted(candidate.snapshots.items()):
        if not snapshot.manifest.is_delta:
            continue
        try:
            message = _check_delta(candidate, snapshot)
        except _Refused as refusal:
            yield fail_check(DELTAS, part, refusal.reason, refusal.message)
        else:
            yield pass_check(DELTAS, part, message)


def _check_delta(candidate: Candidate, snapshot: Snapshot) -> str:
    parent = _parent(candidate, snapshot)
    _check_same_program(snapshot, parent)
    document = _document(candidate, snapshot)
    full = document.full is not None and _is_stored(candidate, document.full)
    chain = tuple(_lineage(candidate, snapshot))
    lost = next((each for each in chain if not _is_stored(candidate, each.digest)), None)
    if lost is not None and not full:
        msg = f"its ancestor {lost.number} is not in the artifact store any more; publish a full snapshot"
        raise _Refused(Reason.ARTIFACT_MISSING, msg)
    if lost is None:
        _check_forms(candidate, snapshot, document, chain[-1])
    rows = sum(tensor.rows for tensor in document.tensors.values())
    return f"{rows} rows of {len(document.tensors)} tensors against snapshot {parent.number}"


def _parent(candidate: Candidate, snapshot: Snapshot) -> Snapshot:
    digest = snapshot.manifest.parent
    parent = candidate.published.get((snapshot.part, digest or ""))
    if parent is None:
        msg = (
            f"a delta of snapshot {digest}, which is no snapshot of part {snapshot.part!r} of this model; "
            "publish that one first, or a full snapshot"
        )
        raise _Refused(Reason.ARTIFACT_MISSING, msg)
    return parent


def _check_same_program(snapshot: Snapshot, parent: Snapshot) -> None:
    ours, theirs = snapshot.manifest, parent.manifest
    if ours.engine != theirs.engine:
        msg = f"made for engine {ours.engine!r}, its parent {parent.number} for {theirs.engine!r}"
        raise _Refused(Reason.ENGINE_MISMATCH, msg)
    if ours.signature != theirs.signature:
        msg = f"its signature is not that of its parent {parent.number}; publish a full snapshot"
        raise _Refused(Reason.SCHEMA_MISMATCH, msg)
    if {file.path for file in ours.files} != DELTA_FILES:
        names = ", ".join(sorted(file.path for file in ours.files))
        msg = f"holds {names}; a delta has {', '.join(sorted(DELTA_FILES))} and nothing else"
        raise _Refused(Reason.UNSAFE_FORMAT, msg)


def _document(candidate: Candidate, snapshot: Snapshot) -> DeltaDocument:
    with _open(candidate, snapshot, DELTA_FILE) as (stream, size):
        if size > LARGEST_DOCUMENT_BYTES:
            msg = f"{DELTA_FILE}: {size} bytes are too many; allowed: {LARGEST_DOCUMENT_BYTES}"
            raise _Refused(Reason.UNSAFE_FORMAT, msg)
        read = partial(read_document, kind=DeltaDocument, most_separators=MOST_SEPARATORS)
        try:
            return candidate.parse(size, lambda: read(stream.read(size)))
        except InvalidInput as error:
            raise _Refused(Reason.UNSAFE_FORMAT, f"{DELTA_FILE}: {error.message}") from error


@contextmanager
def _open(candidate: Candidate, snapshot: Snapshot, path: str) -> Iterator[tuple[BinaryIO, int]]:
    """Open a file of a snapshot as a stream, with its size in bytes."""
    file = next((file for file in snapshot.manifest.files if file.path == path), None)
    if file is None:
        msg = f"snapshot {snapshot.number} holds no {path}; deltas are made for engine 'torch'"
        raise _Refused(Reason.ENGINE_MISMATCH, msg)
    with candidate.open(file.sha256) as stream:
        yield stream, file.size_bytes


def _lineage(candidate: Candidate, snapshot: Snapshot) -> Iterator[Snapshot]:
    """Yield the parent, its parent, and so on down to a full snapshot."""
    while snapshot.manifest.is_delta:
        snapshot = _parent(candidate, snapshot)
        yield snapshot


def _is_stored(candidate: Candidate, digest: str) -> bool:
    try:
        candidate.artifacts.manifest(snapshot_uri(candidate.artifacts.uri, digest))
    except ArtifactError:
        return False
    return True


def _check_forms(candidate: Candidate, snapshot: Snapshot, document: DeltaDocument, base: Snapshot) -> None:
    """Check a delta against the full snapshot at the end of the chain.

    Names, types and shapes must be the same, and row numbers within its tensors.
    """
    try:
        with _open(candidate, base, BASE_WEIGHTS_FILE) as (stream, size):
            below = read_places(stream, size, parse=candidate.parse)[0]
        with _open(candidate, snapshot, DELTA_WEIGHTS_FILE) as (stream, size):
            given, start = read_places(stream, size, parse=candidate.parse)
            _check_names(document, given)
            faults = _row_faults(candidate, stream, given, start, below)
    except MalformedTensors as error:
        msg = f"its weights, or those of snapshot {base.number}, are no safetensors file: {error}"
        raise _Refused(Reason.UNSAFE_FORMAT, msg) from error
    for key, told in document.tensors.items():
        if key not in below:
            msg = f"tensor {key!r} is not among the weights of snapshot {base.number}"
            raise _Refused(Reason.SCHEMA_MISMATCH, msg)
        _check_form(key, told, given, below[key])
        if key in faults:
            raise _Refused(Reason.SCHEMA_MISMATCH, faults[key])


def _check_names(document: DeltaDocument, given: Forms) -> None:
    expected = {name for key, told in document.tensors.items() for name in _names(key, told)}
    if given.keys() != expected:
        odd = ", ".join(sorted(given.keys() ^ expected)[:MOST_NAMED])
        msg = f"{DELTA_FILE} and {DELTA_WEIGHTS_FILE} don't name the same tensors: {odd}"
        raise _Refused(Reason.UNSAFE_FORMAT, msg)


def _names(key: str, told: ChangedTensor) -> tuple[str, ...]:
    return (WHOLE + key,) if told.whole else (ROWS + key, VALUES + key)


def _check_form(key: str, told: ChangedTensor, given: Forms, below: TensorPlace) -> None:
    found = given[_names(key, told)[-1]]
    shape = below.shape if told.whole else (told.rows, *(below.shape or (1,))[1:])
    if (found.dtype, found.shape) != (below.dtype, shape):
        msg = (
            f"tensor {key!r} is {found.dtype} of shape {list(found.shape)}, needed is {below.dtype} of {list(shape)}; "
            "a model of other shapes is published as a full snapshot"
        )
        raise _Refused(Reason.SCHEMA_MISMATCH, msg)


def _row_faults(candidate: Candidate, stream: BinaryIO, given: Forms, start: int, below: Forms) -> Mapping[str, str]:
    """Map each tensor to the fault of its row numbers; CHUNK_BYTES of them are in memory at a time."""
    found: dict[str, str] = {}
    position = start
    for name, place in given.items():
        key = name.removeprefix(ROWS)
        if not name.startswith(ROWS) or key not in below:
            continue
        if place.dtype != "I64" or (place.end - place.begin) % ROW_NUMBER_BYTES:
            msg = f"tensor {name!r} is {place.dtype} of {place.end - place.begin} bytes, row numbers are I64"
            raise MalformedTensors(msg)
        for _ in pieces_of(stream, start + place.begin - position):
            candidate.beat(f"reading {DELTA_WEIGHTS_FILE}")
        count, last = (below[key].shape or (1,))[0], -1
        for piece in pieces_of(stream, place.end - place.begin):
            candidate.beat(f"checking the row numbers of {key}")
            rows = np.frombuffer(piece, "<i8")
            if not (rows[0] > last and (rows[1:] > rows[:-1]).all() and rows[-1] < count):
                found[key] = f"tensor {key!r}: its row numbers must rise from 0 on and end below {count}"
            last = int(rows[-1])
        position = start + place.end
    return found
