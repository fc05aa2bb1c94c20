"""Publication of what a model's sources found: the newest version of each part, all parts in one change.

While a publish of the model waits for its turn, nothing is added behind it: versions that come meanwhile are superseded
by the newest one. A delta is published after its parent. A crash at any point repeats the step: the change's id follows
from the versions, and a version has one end.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from functools import partial
from typing import Any, Final

from temporalio import activity

from activities.metadata.version_signatures import VersionSignatures
from activities.runtime.errors import public_text
from activities.runtime.owner_turns import OwnerShares, ShareTaken
from ipnext.artifacts.layout import snapshot_uri
from ipnext.artifacts.port import ArtifactStore
from ipnext.artifacts.sources import ArtifactSource
from ipnext.artifacts.upload import ingest
from ipnext.errors import (
    ArtifactDigestMismatch,
    ArtifactMissing,
    DuplicateSnapshot,
    InvalidInput,
    IPnextError,
    QuotaExceeded,
    SignatureInvalid,
    SnapshotDenied,
)
from ipnext.model.lifecycle.changes.change import Change, ChangeKind, ChangeState
from ipnext.model.lifecycle.sources import PickUpInput, PickUpResult
from ipnext.model.registry.registry import SnapshotSource
from ipnext.model.registry.signing import SignerPolicy
from ipnext.model.registry.sources import SnapshotOrigin, VersionState
from ipnext.model.value import canonical_json, digest_of
from ipnext.names import SOURCE_PREFIX
from ipnext.platform.publication import Publisher, check_denial
from ipnext.platform.signatures import SignatureKeeper
from ipnext.settings import PlatformSettings
from ipnext.sources.access import ReadAccess
from ipnext.sources.kinds import SourceKinds
from ipnext.sources.port import StreamRequest
from ipnext.store.records import SourceRecord, VersionRecord
from ipnext.store.repository import Repository
from ipnext.store.store import Store
from ipnext.store.unit_of_work import utc_now

ID_DIGITS: Final = 32
FIRST_PAUSE_SECONDS: Final = 5.0
LONGEST_PAUSE_SECONDS: Final = 600.0
"""Between two attempts to read a version."""
WAITS_SECONDS: Final = 2.0
"""Until the next look at a model whose last publish waits for its turn."""
RETIRES_SECONDS: Final = 30.0
"""The same, of a model with an open retirement, which may wait for weeks of a freeze."""
LACKS_SECONDS: Final = 15.0
"""The same, of a model that lacks another part."""
MISSED_ATTEMPTS: Final = 10
"""Attempts, within an hour, at a version whose files or signature lack or differ. Then it is refused."""
_LATER: Final = (ArtifactMissing, ArtifactDigestMismatch, SignatureInvalid)
"""A copy may be under way, and a signature may follow what it signs."""
_WAITING: Final = frozenset({ChangeState.RECORDED, ChangeState.QUEUED})


@dataclass(frozen=True)
class _Read:
    """A version whose content is in the artifact store."""

    version: VersionRecord
    content: SnapshotSource


@dataclass(frozen=True)
class _Rules:
    """What decides how a model's versions are read."""

    owner: str
    sources: Mapping[str, SourceRecord]
    signers: SignerPolicy | None


@dataclass(frozen=True)
class _Later:
    """Nothing can be published now."""

    message: str
    seconds: float


class SourcePickUpActivities:
    """Activity that publishes a model's versions. `shares`: of the slots that one owner's reads hold."""

    def __init__(
        self,
        store: Store,
        artifacts: ArtifactStore,
        kinds: SourceKinds,
        publisher: Publisher,
        settings: PlatformSettings,
        shares: OwnerShares | None = None,
    ) -> None:
        self._store, self._artifacts, self._kinds, self._settings = store, artifacts, kinds, settings
        self._publisher = publisher
        keeper = SignatureKeeper(store, artifacts, settings.native_library_keys_file)
        self._signatures = VersionSignatures(artifacts, keeper)
        self._shares = shares or OwnerShares()

    def all(self) -> Sequence[Callable[..., Any]]:
        """Return the activities that a worker registers."""
        return (self.pick_up_versions,)

    @activity.defn(name="pick_up_versions", no_thread_cancel_exception=True)
    def pick_up_versions(self, asked: PickUpInput) -> PickUpResult:
        """Read the newest version of each part, and publish them together."""
        with self._store.read() as unit:
            record = unit.model(asked.model)
            sources = {source.name: source for source in unit.sources(asked.model)}
            pending = unit.pending_versions(asked.model)
            waits = _find_waiting(unit, asked.model)
        if record.retired or not pending:
            return PickUpResult()
        if waits is not None:
            return PickUpResult(pending=len(pending), next_seconds=waits.seconds, message=waits.message)
        owner = record.manifest.metadata.owner
        rules = _Rules(owner, sources, record.manifest.spec.validation.signers)
        try:
            with self._shares.hold(owner):
                found = self._read_parts(rules, pending)
        except ShareTaken as error:
            return PickUpResult(pending=len(pending), next_seconds=WAITS_SECONDS, message=error.message)
        return self._publish(asked.model, owner, found)

    def _read_parts(self, rules: _Rules, pending: Sequence[VersionRecord]) -> Mapping[str, _Read]:
        """Return part -> the version to publish next, read into the artifact store."""
        parts: dict[str, list[VersionRecord]] = {}
        for version in pending:
            parts.setdefault(version.part, []).append(version)
        found = {part: self._read_part(rules, versions) for part, versions in sorted(parts.items())}
        return {part: read for part, read in found.items() if read is not None}

    def _read_part(self, rules: _Rules, versions: Sequence[VersionRecord]) -> _Read | None:
        """Return the newest version that can be read; of a chain of deltas the oldest one whose parent is known.

        None if the newest one is to be tried again later: an older one in its place would only be superseded. One whose
        files, signature or parent lack or differ lets older ones pass: it may stay so.
        """
        chain: list[_Read] = []
        wanted: str | None = None
        for version in versions:
            if version.due_at is not None and version.due_at > utc_now():
                return None
            try:
                self._check_denial(version)
                content = self._read(rules, version)
                self._signatures.check(rules.signers, content)
                self._check_denial(version, content)
            except Exception as error:  # noqa: BLE001 - a plug-in may raise anything; its version has the error
                if self._note_failure(version, error) or isinstance(error, _LATER):
                    continue
                return None
            if wanted is not None and content.manifest.digest != wanted:
                continue
            content = content.model_copy(update={"trained_at": version.version.trained_at})
            chain.append(_Read(version, content))
            wanted = self._unknown_parent(version, content)
            if wanted is None:
                return chain[-1]
        for read in chain:
            self._note_failure(read.version, ArtifactMissing(_no_parent(read.content)))
        lost = {read.version.ordinal for read in chain}
        return self._read_part(rules, [each for each in versions if each.ordinal not in lost]) if lost else None

    def _read(self, rules: _Rules, version: VersionRecord) -> SnapshotSource:
        """Return a version's content in the artifact store; it is read from its source once."""
        place, owner = version.version.place, rules.owner
        if place.startswith(f"{self._artifacts.uri}/snapshots/"):
            return self._find_stored(owner, place)
        if version.digest is not None:
            with suppress(ArtifactMissing):  # it was read before, and collected since
                content = self._find_stored(owner, snapshot_uri(self._artifacts.uri, version.digest))
                if not self._signatures.is_signed(rules.signers, content):
                    self._signatures.store_later_ones(owner, rules.signers, content, self._open(rules, version))
                return content
        source = self._open(rules, version)
        content = ingest(
            self._artifacts,
            source,
            announce=partial(self._publisher.announce, owner),
            sign=partial(self._signatures.store, owner),
        )
        with self._store.begin_free(()) as unit:
            parent = content.manifest.parent if content.manifest.is_delta else None
            unit.note_read(version.ordinal, content.manifest.digest, parent=parent)
        self._signatures.store_cosigned(owner, rules.signers, content, source)
        return content

    def _open(self, rules: _Rules, version: VersionRecord) -> ArtifactSource:
        source = rules.sources[version.source]
        access = ReadAccess.of(self._settings, rules.owner, source.reach)
        (connected,) = self._kinds.get(source.kind).connect([StreamRequest(source.spec.stream, access)])
        return connected.open(version.version)

    def _find_stored(self, owner: str, uri: str) -> SnapshotSource:
        content = SnapshotSource(manifest=self._artifacts.manifest(uri), uri=uri)
        self._publisher.announce(owner, content.manifest)
        return content

    def _check_denial(self, version: VersionRecord, content: SnapshotSource | None = None) -> None:
        """Check the image that a version came in, and its content. Raises SnapshotDenied."""
        with self._store.read() as unit:
            check_version(unit, version, content)

    def _unknown_parent(self, version: VersionRecord, content: SnapshotSource) -> str | None:
        """Return the digest of a delta's parent without bytes of its own; None for anything else."""
        parent = content.manifest.parent
        if not content.manifest.is_delta or parent is None:
            return None
        with self._store.read() as unit:
            return None if unit.has_bytes(version.model, version.part, parent) else parent

    def _note_failure(self, version: VersionRecord, error: Exception) -> bool:
        """Record a failed attempt. True if the version is refused for good."""
        final = _is_final(error) or (isinstance(error, _LATER) and version.attempts >= MISSED_ATTEMPTS)
        if final:
            self._end(version, VersionState.REFUSED, public_text(error))
            return True
        self._postpone(version, error)
        return False

    def _postpone(self, version: VersionRecord, error: Exception) -> None:
        pause = min(FIRST_PAUSE_SECONDS * 2.0 ** min(version.attempts, 16), LONGEST_PAUSE_SECONDS)
        with self._store.begin_free(()) as unit:
            unit.postpone_version(version.ordinal, public_text(error), utc_now() + timedelta(seconds=pause))

    def _end(self, version: VersionRecord, state: VersionState, message: str) -> None:
        with self._store.begin(version.model) as unit:
            unit.end_version(version.ordinal, state, message)
            text = f"version {version.version.key} of source {version.source} is refused: {message}"
            unit.add_event(version.model, "SourceRefused", text)

    def _publish(self, model: str, owner: str, found: Mapping[str, _Read]) -> PickUpResult:
        later = _Later("", FIRST_PAUSE_SECONDS)
        published: Mapping[str, str] = {}
        change: Change | None = None
        if found:
            try:
                change, published, later = self._record(model, owner, found)
            except DuplicateSnapshot as error:
                self._note_duplicates(model, found, error)
            except IPnextError as error:
                self._note_refusal(found, error)
        with self._store.read() as unit:
            left = unit.pending_versions(model)
        now = utc_now()
        due = [max(0.0, (each.due_at - now).total_seconds()) for each in left if each.due_at is not None]
        return PickUpResult(
            pending=len(left),
            next_seconds=max(1.0, min(due)) if due and not later.message else later.seconds,
            published=published,
            change_id=change.id if change else None,
            message=later.message or next((each.message for each in left if each.message), ""),
        )

    def _note_refusal(self, found: Mapping[str, _Read], error: IPnextError) -> None:
        """Refuse the version of the part that a refused publish names; the others are published without it."""
        named = (getattr(error, "field", None) or "").removeprefix("parts.")
        if named in found:
            self._note_failure(found[named].version, error)
            return
        if len(found) == 1:
            self._note_failure(next(iter(found.values())).version, error)
            return
        for read in found.values():
            self._postpone(read.version, error)

    def _record(
        self, model: str, owner: str, found: Mapping[str, _Read]
    ) -> tuple[Change | None, Mapping[str, str], _Later]:
        """Record the publish and the end of its versions, and of the older ones that they supersede."""
        contents = {part: read.content for part, read in found.items()}
        self._publisher.check_there(contents)
        deltas = self._find_deltas(model, {content.manifest.digest for content in contents.values()})
        with self._store.begin(model) as unit:
            pending = unit.pending_versions(model)
            chosen = {read.version.ordinal for read in found.values()}
            if not chosen <= {version.ordinal for version in pending}:
                return None, {}, _Later("a source was changed or paused", WAITS_SECONDS)
            if unit.model(model).retired or unit.open_retirement(model) is not None:
                return None, {}, _Later("the model is to be retired", RETIRES_SECONDS)
            lacking = _find_lacking(unit, model, contents)
            if lacking:
                return None, {}, _Later(f"waits for a snapshot of {', '.join(lacking)}", LACKS_SECONDS)
            keys = sorted(
                (read.version.source, read.version.version.key, read.version.ordinal) for read in found.values()
            )
            change_id = _unused_id(unit, f"{SOURCE_PREFIX}{digest_of([model, *map(list, keys)])[:ID_DIGITS]}")
            for part, read in found.items():
                check_version(unit, read.version, contents[part])
            change = self._publisher.record(unit, model, owner, contents, change_id=change_id)
            numbers = unit.generation(model, change.generation or 0).snapshots
            for part, read in found.items():
                origin = SnapshotOrigin.of(read.version.source, read.version.version)
                unit.set_origin(model, part, numbers[part], canonical_json(origin))
                unit.end_version(read.version.ordinal, VersionState.PUBLISHED, change_id=change.id)
                unit.supersede_versions(read.version, but=deltas)
            unit.note_pick_up([read.version for read in found.values()])
            published = {read.version.source: read.version.version.key for read in found.values()}
            named = ", ".join(f"{key} of {source}" for source, key in sorted(published.items()))
            unit.add_event(model, "PickedUp", f"generation {change.generation}: version {named}")
        return change, published, _Later("", WAITS_SECONDS)

    def _find_deltas(self, model: str, parents: Collection[str]) -> tuple[int, ...]:
        """Return pending versions that were read before their parent came: they are published after it."""
        with self._store.read() as unit:
            read = [each for each in unit.pending_versions(model) if each.digest is not None]
        found = []
        for version in read:
            with suppress(ArtifactMissing):
                manifest = self._artifacts.manifest(snapshot_uri(self._artifacts.uri, version.digest or ""))
                if manifest.is_delta and manifest.parent in parents:
                    found.append(version.ordinal)
        return tuple(found)

    def _note_duplicates(self, model: str, found: Mapping[str, _Read], error: DuplicateSnapshot) -> None:
        """End versions whose bytes the model's newest snapshots have, with the older ones: they are newest no more."""
        with self._store.begin(model) as unit:
            for read in found.values():
                if read.content.trained_at is not None:
                    digest = read.content.manifest.digest
                    unit.note_trained(model, read.version.part, digest, read.content.trained_at)
                unit.end_version(read.version.ordinal, VersionState.PUBLISHED, error.message)
                unit.supersede_versions(read.version)
            unit.note_pick_up([read.version for read in found.values()])


def check_version(unit: Repository, version: VersionRecord, content: SnapshotSource | None) -> None:
    """Check that neither the image that a version came in nor its content is denied. Raises SnapshotDenied."""
    named = f"version {version.version.key}"
    image = unit.find_digest_denial(version.version.place.removeprefix("sha256:"))
    if image is not None:
        msg = f"{named}: its image can't be published: {image.text}"
        raise SnapshotDenied(msg)
    if content is not None:
        check_denial(unit, content.manifest, named)


def _unused_id(unit: Repository, first: str) -> str:
    """Return an id for the publish of some versions: another one if their last publish was superseded."""
    change_id, attempt = first, 1
    while (former := unit.find_change(change_id)) is not None and former.state is ChangeState.SUPERSEDED:
        attempt += 1
        change_id = f"{first}.{attempt}"
    return change_id


def _find_waiting(unit: Repository, model: str) -> _Later | None:
    """Return what versions of a model wait for, if anything, and how long.

    The end of a retirement, which may be taken back, or the turn of a publish that is newer than one that runs.
    """
    retirement = unit.open_retirement(model)
    if retirement is not None:
        message = f"retirement {retirement.id} is open; versions are published if it is taken back"
        return _Later(message, RETIRES_SECONDS)
    newest = unit.open_kinds(model).get(ChangeKind.PUBLISH)
    change = None if newest is None else unit.change(newest)
    if change is None or change.state not in _WAITING:
        return None
    message = f"publish {change.id} waits for its turn; the newest version is published once it has begun"
    return _Later(message, WAITS_SECONDS)


def _find_lacking(unit: Repository, model: str, contents: Mapping[str, SnapshotSource]) -> list[str]:
    """Return the parts of a model of which there is no snapshot with its bytes, neither a published nor a new one."""
    parts = [part.name for part in unit.model(model).manifest.spec.parts if part.name not in contents]
    return sorted(part for part in parts if not unit.has_snapshot(model, part) or unit.newest_is_collected(model, part))


def _is_final(error: Exception) -> bool:
    """Return whether another attempt would fail in the same way."""
    if isinstance(error, QuotaExceeded):
        return False
    return isinstance(error, InvalidInput | SnapshotDenied)


def _no_parent(content: SnapshotSource) -> str:
    parent = content.manifest.parent or ""
    return (
        f"a delta of snapshot {parent:.16}, which was not published or whose bytes were collected, and which the "
        "source does not have"
    )
