"""Validators of a snapshot's files: safe names, content that matches the manifest, and formats that hold no code."""

import hashlib
from collections import Counter
from collections.abc import Iterator, Mapping
from pathlib import PurePosixPath

from activities.validation.documents.json_process import LARGEST_JSON_BYTES, JsonFiles
from activities.validation.validator import Candidate, fail_check, pass_check
from ipnext.artifacts.hashing import read_ahead
from ipnext.artifacts.native_code import SETTING
from ipnext.artifacts.signing import check_signature
from ipnext.errors import ArtifactMissing, InvalidInput, SignatureInvalid
from ipnext.model.lifecycle.checks import CheckResult
from ipnext.model.lifecycle.status import Reason
from ipnext.model.registry.registry import OWN_FILES, ArtifactFile, Snapshot
from ipnext.model.registry.snapshot_files import check_files
from ipnext.names import COMPILE_SETTING, LIBRARY_FILE

PATHS = "safe-paths"
DIGESTS = "digests"
FORMATS = "safe-formats"

SAFE_SUFFIXES = (".safetensors", ".json", ".jsonl", ".txt", ".md", ".jinja", ".model", ".tiktoken", ".yaml", ".yml")
"""Formats that hold data only: no pickle, no archive that may contain one, no native code."""

NATIVE_MAGIC = b"\x7fELF"

_CODE_MAGIC = {
    b"\x80\x02": "a pickle",
    b"\x80\x03": "a pickle",
    b"\x80\x04": "a pickle",
    b"\x80\x05": "a pickle",
    b"PK\x03\x04": "a zip archive",
    NATIVE_MAGIC: "native code",
    b"\x1f\x8b": "a gzip archive",
    b"MZ": "native code",
}


def check_paths(candidate: Candidate) -> Iterator[CheckResult]:
    """Check that each path stays inside the snapshot, is listed once, and is one that the engine's snapshots have."""
    for part, snapshot in sorted(candidate.snapshots.items()):
        paths = [file.path for file in snapshot.manifest.files]
        other = _foreign_file(candidate, snapshot)
        faults = [f"{path!r} {fault}" for path in paths if (fault := _path_fault(path))]
        faults += [f"{path!r} stands twice" for path, count in sorted(Counter(paths).items()) if count > 1]
        if faults:
            yield fail_check(
                PATHS, part, Reason.UNSAFE_FORMAT, f"{faults[0]}; a path is relative and plain, as in weights.json"
            )
        elif other:
            yield fail_check(PATHS, part, Reason.UNSAFE_FORMAT, other)
        else:
            yield pass_check(PATHS, part, f"{len(paths)} files")


def check_digests(candidate: Candidate) -> Iterator[CheckResult]:
    """Read every blob through once, whatever names it has, and compare its size and SHA-256 with the manifest."""
    read: dict[str, tuple[int, str]] = {}
    for part, snapshot in sorted(candidate.snapshots.items()):
        for file in snapshot.manifest.files:
            subject = f"{part}/{file.path}"
            try:
                if file.sha256 not in read:
                    read[file.sha256] = _hash_file(candidate, file, subject)
                size, digest = read[file.sha256]
            except ArtifactMissing as error:
                yield fail_check(DIGESTS, subject, Reason.ARTIFACT_MISSING, error.message)
                continue
            if (size, digest) == (file.size_bytes, file.sha256):
                yield pass_check(DIGESTS, subject)
            else:
                message = f"{size} bytes with SHA-256 {digest}; the manifest says {file.size_bytes} and {file.sha256}"
                yield fail_check(DIGESTS, subject, Reason.ARTIFACT_DIGEST_MISMATCH, message)


def check_forms(candidate: Candidate) -> Iterator[CheckResult]:
    """Refuse files by name and size alone, as `check_formats` does, without reading them."""
    for part, snapshot in sorted(candidate.snapshots.items()):
        for file in snapshot.manifest.files:
            subject = f"{part}/{file.path}"
            fault = "" if file.path == LIBRARY_FILE else form_fault(file)
            yield fail_check(FORMATS, subject, Reason.UNSAFE_FORMAT, fault) if fault else pass_check(FORMATS, subject)


def check_formats(candidate: Candidate) -> Iterator[CheckResult]:
    """Accept only formats that hold data, and content that is of its format.

    The one exception is a compiled library, if the settings of the part let native code run and a key that the operator
    of the platform trusts has signed it: neither a snapshot nor a manifest permits that alone.
    """
    judged: dict[tuple[str, str], str] = {}
    for _, snapshot in sorted(candidate.snapshots.items()):
        documents = JsonFiles(candidate.confinement)
        for file in snapshot.manifest.files:
            candidate.beat(f"looking at {snapshot.part}/{file.path}")
            yield _format_result(candidate, snapshot, file, judged, documents)


def _format_result(
    candidate: Candidate,
    snapshot: Snapshot,
    file: ArtifactFile,
    judged: dict[tuple[str, str], str],
    documents: JsonFiles,
) -> CheckResult:
    """Check one file. `judged` caches faults by blob and suffix, because many names may share one blob."""
    part = snapshot.part
    subject = f"{part}/{file.path}"
    try:
        library = file.path == LIBRARY_FILE
        if library:
            fault = _library_fault(candidate, snapshot, file)
        else:
            key = (file.sha256, PurePosixPath(file.path).suffix.lower())
            if key not in judged:
                judged[key] = _format_fault(candidate, file, documents)
            fault = judged[key]
    except ArtifactMissing as error:
        return fail_check(FORMATS, subject, Reason.ARTIFACT_MISSING, error.message)
    return fail_check(FORMATS, subject, Reason.UNSAFE_FORMAT, fault) if fault else pass_check(FORMATS, subject)


def _path_fault(path: str) -> str:
    steps = path.split("/")
    if path.startswith("/") or ":" in steps[0] or "\\" in path or not path.isprintable():
        return "is absolute or holds a character that is not allowed"
    if any(step in {"", ".", ".."} for step in steps):
        return "holds an empty step, '.' or '..'"
    return f"takes the name {steps[0]}, which the platform writes itself" if steps[0] in OWN_FILES else ""


def _foreign_file(candidate: Candidate, snapshot: Snapshot) -> str:
    try:
        check_files(snapshot.manifest, candidate.plugins.files_of(snapshot.manifest.engine))
    except InvalidInput as error:
        return error.message
    return ""


def _hash_file(candidate: Candidate, file: ArtifactFile, subject: str) -> tuple[int, str]:
    digest, size = hashlib.sha256(), 0
    with candidate.open(file.sha256) as stream:
        for piece in read_ahead(stream):
            digest.update(piece)
            size += len(piece)
            candidate.beat(f"reading {subject}: {size} of {file.size_bytes} bytes")
    return size, digest.hexdigest()


def _library_fault(candidate: Candidate, snapshot: Snapshot, file: ArtifactFile) -> str:
    part = snapshot.part
    asked = [spec.settings.get(COMPILE_SETTING) for spec in candidate.manifest.spec.parts if spec.name == part]
    if not any(given is True or isinstance(given, Mapping) for given in asked):
        return f"is native code; hosts run it only if settings.{COMPILE_SETTING} of part {part!r} asks for it"
    if candidate.native_signers is None:
        return (
            "is native code, which this platform runs of no snapshot; publish the source snapshot, "
            "or let the operator set "
            f"{SETTING} for workers and agents, with the key that signs it"
        )
    try:
        signature = candidate.artifacts.signature(snapshot.uri)
        check_signature(candidate.native_signers, snapshot.digest, signature, "is native code", keys=SETTING)
    except SignatureInvalid as error:
        return error.message
    with candidate.open(file.sha256) as stream:
        return "" if stream.read(len(NATIVE_MAGIC)) == NATIVE_MAGIC else "is no native library under the name of one"


def form_fault(file: ArtifactFile) -> str:
    """Return the fault of a file by its name and size alone; empty if there is none."""
    suffix = PurePosixPath(file.path).suffix.lower()
    if suffix not in SAFE_SUFFIXES:
        return f"{suffix or 'no suffix'} may hold code; allowed: {', '.join(SAFE_SUFFIXES)}"
    if suffix == ".json" and file.size_bytes > LARGEST_JSON_BYTES:
        return f"{file.size_bytes} bytes of JSON are too many; allowed: {LARGEST_JSON_BYTES}"
    return ""


def _format_fault(candidate: Candidate, file: ArtifactFile, documents: JsonFiles) -> str:
    if fault := form_fault(file):
        return fault
    suffix = PurePosixPath(file.path).suffix.lower()
    with candidate.open(file.sha256) as stream:
        start = stream.read(8)
        for magic, what in _CODE_MAGIC.items():
            if suffix != ".safetensors" and start.startswith(magic):
                return f"is {what} under the name of {suffix}"
        if suffix == ".json":
            return candidate.parse(file.size_bytes, lambda: documents.find_fault(start, stream, file.size_bytes))
    return ""
