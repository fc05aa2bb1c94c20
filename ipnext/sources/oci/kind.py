"""Kind `oci`: the snapshots that a tag of a repository names, one after the other.

A snapshot's files are the layers of an image, each a plain file. The digest that the tag names is pinned: everything
is read by digest, and checked against it. A tag may return to a former digest, which is then a version again: the
cursor counts the moves.
"""

import hashlib
import re
import time
from collections.abc import Mapping, Sequence
from typing import Any, BinaryIO, Final

from ipnext.artifacts.layout import mismatch
from ipnext.artifacts.sources import ArtifactSource
from ipnext.errors import ArtifactMissing, InvalidInput, IPnextError, Unavailable
from ipnext.model.manifest.sources import OciStream
from ipnext.model.registry.registry import ArtifactFile
from ipnext.model.registry.sources import MOST_LABELS, FoundVersion, Listing
from ipnext.sources.access import ReadAccess
from ipnext.sources.oci.blob import open_blob
from ipnext.sources.oci.image import (
    ACCEPTED,
    LARGEST_BYTES,
    Index,
    choose_image,
    files_of,
    read_facts,
    read_manifest,
)
from ipnext.sources.oci.registry import AddressRefused, Connections, Repository, parse_repository
from ipnext.sources.oci.signatures import Cosignature, find_signatures
from ipnext.sources.port import StreamRequest
from ipnext.sources.training_record import TrainingRecord, read_training_record

POLL_SECONDS: Final = 60.0
"""Longest time for all requests of one poll of one tag, and for the manifests of a version that is read."""

_DIGEST: Final = re.compile(r"sha256:[0-9a-f]{64}")
_CURSOR: Final = re.compile(r"([1-9][0-9]{0,17}):(sha256:[0-9a-f]{64})")


class ImageFiles:
    """The files of a snapshot in a repository, by the digest of its manifest."""

    def __init__(
        self,
        repository: Repository,
        digest: str,
        files: Mapping[str, ArtifactFile],
        annotations: Mapping[str, str],
        documents: Sequence[bytes],
        ends_at: float | None = None,
    ) -> None:
        """`documents`: the bytes of the digest, and of the image below an index.

        `ends_at` is the end of all that is read, by the monotonic clock; None: each file has its own.
        """
        self._repository, self._digest, self._files, self._ends_at = repository, digest, files, ends_at
        self.annotations, self._documents = annotations, documents

    @property
    def uri(self) -> str:
        """`oci://HOST/NAME@sha256:...`."""
        return _uri(self._repository, self._digest)

    def size_bytes(self, path: str) -> int:
        """Return the size of a file as the manifest has it; the stream is checked against it."""
        return self._file(path).size_bytes

    def open(self, path: str) -> BinaryIO:
        """Open a stream of a file; the caller closes it."""
        return open_blob(self._repository, self._file(path), self._ends_at)

    def find_signatures(self) -> tuple[Cosignature, ...]:
        """Return cosign's signatures of the image. Raises SignatureInvalid or Unavailable."""
        return find_signatures(self._repository, self._digest, self._documents, time.monotonic() + POLL_SECONDS)

    def _file(self, path: str) -> ArtifactFile:
        file = self._files.get(path)
        if file is None:
            msg = f"file {path!r} is not in {self.uri}"
            raise ArtifactMissing(msg)
        return file


def read_image(repository: Repository, digest: str, *, ends_at: float, lasting: bool = True) -> ImageFiles:
    """Return the files of the image with a digest, or of the image that an index with that digest is for.

    `lasting`: files may be read after `ends_at`, the end for manifests. Raises InvalidInput, ArtifactMissing,
    ArtifactDigestMismatch or Unavailable.
    """
    subject = _uri(repository, digest)
    documents = [_read_pinned(repository, digest, ends_at)]
    found = read_manifest(documents[0], subject)
    annotations = dict(found.annotations or {})
    if isinstance(found, Index):
        chosen = choose_image(found, subject)
        subject = _uri(repository, chosen.digest)
        documents.append(_read_pinned(repository, chosen.digest, ends_at))
        found = read_manifest(documents[1], subject)
        annotations |= found.annotations or {}
    if isinstance(found, Index):
        msg = f"{subject}: is an index inside an index; allowed: an image manifest"
        raise InvalidInput(msg, field="manifests", value=digest)
    files = files_of(found, subject)
    return ImageFiles(repository, digest, files, annotations, documents, None if lasting else ends_at)


def _read_pinned(repository: Repository, digest: str, ends_at: float) -> bytes:
    content = repository.read_manifest(digest, ACCEPTED, LARGEST_BYTES, ends_at)
    found = hashlib.sha256(content).hexdigest()
    if f"sha256:{found}" != digest:
        raise mismatch(_uri(repository, digest), expected=digest.removeprefix("sha256:"), found=found)
    return content


def _uri(repository: Repository, digest: str) -> str:
    return f"oci://{repository.place.url.partition('://')[2]}@{digest}"


class _TagPoll:
    """One poll of a tag, whose answer all streams of the tag share."""

    def __init__(self, tag: str) -> None:
        self._tag = tag
        self._outcome: str | IPnextError | None = None
        self._facts: dict[str, Mapping[str, Any]] = {}

    def digest(self, repository: Repository) -> str:
        """Return the digest that the tag names. Raises NotFound or Unavailable."""
        if self._outcome is None:
            try:
                self._outcome = self._find_digest(repository)
            except AddressRefused:
                raise  # another stream of the tag may be allowed to read that address
            except IPnextError as error:
                self._outcome = error
        if isinstance(self._outcome, IPnextError):
            raise self._outcome
        return self._outcome

    def facts(self, repository: Repository, digest: str) -> Mapping[str, Any]:
        """Return the fields of a FoundVersion beside key and place.

        A manifest with a fault has none: the version ends once its content is read, where the fault is reported.
        """
        if digest not in self._facts:
            self._facts[digest] = _read_facts(repository, digest)
        return self._facts[digest]

    def _find_digest(self, repository: Repository) -> str:
        ends_at = time.monotonic() + POLL_SECONDS
        named = repository.find_header(self._tag, ACCEPTED, "docker-content-digest", ends_at) or ""
        if _DIGEST.fullmatch(named):
            return named
        content = repository.read_manifest(self._tag, ACCEPTED, LARGEST_BYTES, ends_at)
        return f"sha256:{hashlib.sha256(content).hexdigest()}"


def _read_facts(repository: Repository, digest: str) -> Mapping[str, Any]:
    ends_at = time.monotonic() + POLL_SECONDS
    try:
        image = read_image(repository, digest, ends_at=ends_at, lasting=False)
    except InvalidInput:
        return read_facts({}, digest)
    facts = read_facts(image.annotations, digest)
    record = _read_record(image)
    return {
        "trained_at": record.trained_at or facts["trained_at"],
        "metrics": record.metrics,
        **{name: _join_labels(facts[name], getattr(record, name)) for name in ("tags", "lineage")},
    }


def _read_record(image: ArtifactSource) -> TrainingRecord:
    try:
        return read_training_record(image)
    except Unavailable:
        raise
    except IPnextError:
        return TrainingRecord()


def _join_labels(annotated: Mapping[str, str], recorded: Mapping[str, str]) -> Mapping[str, str]:
    """Return what training.json has, and of the annotations as many as there is room for."""
    room = MOST_LABELS - len(recorded)
    others = [pair for pair in annotated.items() if pair[0] not in recorded]
    return {**recorded, **dict(others[: max(0, room)])}


class WatchedTag:
    """One tag, for one stream."""

    def __init__(self, repository: Repository, access: ReadAccess, poll: _TagPoll) -> None:
        self._repository, self._access, self._poll = repository, access, poll

    def list_since(self, cursor: str) -> Listing:
        """See `Source`. One request while the tag names the digest of the cursor."""
        self._access.check_url(self._repository.place.url)
        moves, former = _parse_cursor(cursor)
        digest = self._poll.digest(self._repository)
        if digest == former:
            return Listing(cursor=cursor)
        key = f"{moves + 1}:{digest}"
        version = FoundVersion(key=key, place=digest, **self._poll.facts(self._repository, digest))
        return Listing(cursor=key, versions=(version,))

    def open(self, version: FoundVersion) -> ArtifactSource:
        """See `Source`."""
        self._access.check_url(self._repository.place.url)
        if _DIGEST.fullmatch(version.place) is None:
            msg = f"place: {version.place[:100]!r} is no digest"
            raise InvalidInput(msg, field="place", value=version.place[:100])
        return read_image(self._repository, version.place, ends_at=time.monotonic() + POLL_SECONDS)


def _parse_cursor(cursor: str) -> tuple[int, str]:
    """Return the number of moves so far, and the digest of the last one."""
    found = _CURSOR.fullmatch(cursor)
    if found is None and cursor:
        msg = f"cursor: {cursor[:100]!r} is not of the form MOVES:sha256:DIGEST"
        raise InvalidInput(msg, field="cursor", value=cursor[:100])
    return (int(found[1]), found[2]) if found else (0, "")


class OciKind:
    """Registries that speak the OCI distribution specification."""

    name = "oci"

    def __init__(self, connections: Connections | None = None) -> None:
        self._connections = connections or Connections()

    def upstream(self, settings: OciStream) -> str:
        """See `SourceKind`: sources of one tag are polled by one request."""
        parse_repository(settings.repository)
        return f"{settings.repository}:{settings.tag}"

    def check(self, settings: OciStream, access: ReadAccess) -> None:
        """See `SourceKind`."""
        access.check_url(parse_repository(settings.repository).url)

    def connect(self, streams: Sequence[StreamRequest]) -> Sequence[WatchedTag]:
        """See `SourceKind`."""
        polls: dict[tuple[str, str, str | None], _TagPoll] = {}
        return [self._watch(stream, polls) for stream in streams]

    def _watch(self, stream: StreamRequest, polls: dict[tuple[str, str, str | None], _TagPoll]) -> WatchedTag:
        place = parse_repository(stream.settings.repository)
        repository = Repository(place, stream.access, self._connections)
        key = (place.url, stream.settings.tag, repository.authorization)
        poll = polls.setdefault(key, _TagPoll(stream.settings.tag))
        return WatchedTag(repository, stream.access, poll)
