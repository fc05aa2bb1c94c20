"""Kind `mlflow`: versions of a registered model of an MLflow server, every one or those that get an alias.

A poll costs the server one request while nothing is new, whatever the number of models. MLflow has no one request that
shows all: so polls look in turns at the registered models (new versions, aliases), at the newest versions (tags), and
at the runs of these (metrics). What is new costs further requests. Positions are in the cursors alone: what a process
remembers of a server only decides where it looks next.
"""

import hashlib
import sys
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import suppress
from enum import Enum
from itertools import takewhile
from typing import Any, Final, NamedTuple, Self, TypeVar

import httpx

from ipnext.artifacts.sources import ArtifactSource
from ipnext.errors import ArtifactMissing, InvalidInput, IPnextError, NotFound, PathNotAllowed
from ipnext.model.manifest.sources import MlflowStream
from ipnext.model.registry.sources import MOST_LABELS, FoundVersion, Listing
from ipnext.sources.access import ReadAccess
from ipnext.sources.mlflow.artifacts import open_artifacts
from ipnext.sources.mlflow.server import (
    RUNS_AT_ONCE,
    Connections,
    Limits,
    MlflowServer,
    ModelVersion,
    RegisteredModel,
    Run,
    base_url,
    time_of,
)
from ipnext.sources.port import StreamRequest

NEW_AT_ONCE: Final = 100
"""New versions of one model that one poll lists; the next one goes on."""
WATCHED: Final = 50
"""Newest versions of a stream whose tags and metrics are looked at again."""
LONGEST_LABEL: Final = 5000
LARGEST: Final = sys.float_info.max
"""MLflow's database keeps this in place of Infinity."""
MOST_EXPERIMENTS: Final = 1_000
DIGITS: Final = 16
PENDING: Final = "PENDING_REGISTRATION"
READY: Final = "READY"
COMMIT_TAG: Final = "mlflow.source.git.commit"

Runs = Mapping[str, Run | None]
"""Id -> run; None for one that was deleted."""
T = TypeVar("T")


class Look(Enum):
    """What one poll looks at, by one request."""

    MODELS = "registered models: new versions and aliases"
    VERSIONS = "newest versions: their tags"
    RUNS = "runs of the newest versions: their metrics"


TURNS: Final = (Look.MODELS, Look.VERSIONS, Look.MODELS, Look.RUNS)


class Position(NamedTuple):
    """Where a stream's watch stands, as its cursor has it: SEQUENCE:VERSION:CREATED:TAGS:RUNS."""

    sequence: int = 0
    """Number of moves of the alias."""
    version: int = 0
    """Highest version that was listed, or the one that the alias names."""
    created: int = 0
    """When the registered model was created: the numbers of another one of its name begin again."""
    tags: str = ""
    runs: str = ""
    """Digests of what was listed of the watched versions; empty if none was."""

    @classmethod
    def parse(cls, cursor: str) -> Self:
        """Return a position; the beginning for an empty cursor. Raises InvalidInput."""
        if not cursor:
            return cls()
        try:
            sequence, version, created, tags, runs = cursor.split(":")
            return cls(int(sequence), int(version), int(created), tags, runs)
        except ValueError as error:
            msg = f"cursor {cursor!r} is not of the form SEQUENCE:VERSION:CREATED:TAGS:RUNS"
            raise InvalidInput(msg, field="cursor", value=cursor) from error

    @property
    def cursor(self) -> str:
        """Its text."""
        return ":".join(map(str, self))

    def within(self, model: RegisteredModel) -> "Position":
        """Return the position in this registered model: the beginning if the former one was deleted."""
        if self.created == model.creation_timestamp:
            return self
        return Position(self.sequence, 0, model.creation_timestamp)


class Memory:
    """What this process knows of one server: where the next poll looks. A lock of one poll at a time."""

    def __init__(self) -> None:
        self.lock = threading.Lock()
        self.turn = 0
        self.models: Mapping[str, RegisteredModel] | None = None
        self.versions: Sequence[ModelVersion] | None = None
        self.experiments: dict[str, str] = {}
        """Id -> name; empty until it is asked for."""
        self.lacking: tuple[str, ...] = ()
        """Runs that are in none of the experiments known so far."""
        self.gone: frozenset[str] = frozenset()
        """Runs that were deleted."""

    def next_look(self) -> Look:
        """Return what to look at now, and advance. Runs can be looked at once versions are known."""
        look = TURNS[self.turn % len(TURNS)]
        self.turn += 1
        if look is Look.RUNS and (self.models is None or self.versions is None):
            return Look.MODELS if self.models is None else Look.VERSIONS
        return look


class Seen(NamedTuple):
    """The answer of a poll's one request: models, versions, or runs with the versions that were seen last."""

    models: Mapping[str, RegisteredModel] | None = None
    versions: Sequence[ModelVersion] = ()
    runs: Runs | None = None


class Poll:
    """One poll of a server for several streams: they share its answers, and its failure."""

    def __init__(self, server: MlflowServer, streams: Sequence[MlflowStream], memory: Memory) -> None:
        self.server, self._streams, self._memory = server, streams, memory
        self._names = tuple(sorted({stream.model for stream in streams}))
        self._known: dict[str, Any] = {}

    def look(self) -> Seen:
        """Return what this poll looks at."""
        return self._once("look", self._look)

    def models(self) -> Mapping[str, RegisteredModel]:
        """Return the registered models of the streams, by name."""
        return self._once("models", self._find_models)

    def versions(self) -> Sequence[ModelVersion]:
        """Return the newest versions of the streams' models, the lowest number first."""
        return self._once("versions", self._find_versions)

    def is_missing(self, model: str) -> bool:
        """Whether a model was not registered when the registered models were looked at last."""
        return self._memory.models is not None and model not in self._memory.models

    def describe(self, versions: Sequence[ModelVersion], known: Runs | None = None) -> tuple[list[FoundVersion], Runs]:
        """Return versions with the facts of their runs, and these runs. `key` is that of a stream of all versions."""
        asked = [run for version in versions if (run := version.run) is not None]
        runs = dict(known or {})
        runs |= self._fetch_runs([run for run in dict.fromkeys(asked) if run not in runs])
        return [self._describe(version, runs.get(version.run or "")) for version in versions], runs

    def _once(self, name: str, find: Callable[[], T]) -> T:
        """Return the result of one attempt, or raise its error again: each stream would pay for a further one."""
        if name not in self._known:
            try:
                self._known[name] = find()
            except IPnextError as error:
                self._known[name] = error
        found = self._known[name]
        if isinstance(found, IPnextError):
            raise found
        result: T = found
        return result

    def _look(self) -> Seen:
        with self._memory.lock:
            look = self._memory.next_look()
        if look is Look.MODELS:
            return Seen(models=self.models())
        if look is Look.VERSIONS:
            return Seen(versions=self.versions())
        versions = self._memory.versions or ()
        return Seen(versions=versions, runs=self._look_at_runs(versions))

    def _find_models(self) -> Mapping[str, RegisteredModel]:
        found = self.server.search_models(self._names)
        self._memory.models = found
        return found

    def _find_versions(self) -> Sequence[ModelVersion]:
        found = sorted(self.server.search_newest_versions(self._names), key=lambda each: (each.name, each.version))
        self._memory.versions = found
        return found

    def _look_at_runs(self, versions: Sequence[ModelVersion]) -> Runs:
        """Return the watched runs by one request. It returns too few until it has learnt their experiments."""
        memory = self._memory
        asked = self._watched_runs(versions)
        there = [run for run in asked if run not in memory.gone]
        lacking = [run for run in there if run in memory.lacking]
        found: Runs = {}
        if there and (lacking or not memory.experiments):
            run = (lacking or there)[0]
            found = {run: self._get_run(run)}
            memory.lacking = tuple(each for each in lacking if each != run)
        elif there:
            found = self.server.search_runs(there, list(memory.experiments)[-MOST_EXPERIMENTS:])
            memory.lacking = tuple(run for run in there if run not in found)
        return {**dict.fromkeys(memory.gone & asked.keys()), **found}

    def _watched_runs(self, versions: Sequence[ModelVersion]) -> Mapping[str, None]:
        """Return the runs of the watched versions of the streams, those of whole streams, in turns if too many."""
        memory = self._memory
        start = (memory.turn // len(TURNS)) % max(1, len(self._streams))
        found: dict[str, None] = {}
        for stream in (*self._streams[start:], *self._streams[:start]):
            of_stream = self._runs_of(stream, versions)
            if len(found | of_stream) > RUNS_AT_ONCE:
                break
            found |= of_stream
        return found

    def _runs_of(self, stream: MlflowStream, versions: Sequence[ModelVersion]) -> dict[str, None]:
        model = (self._memory.models or {}).get(stream.model)
        if model is None:
            return {}
        position = Position(version=_aliased(model, stream.alias) if stream.alias else _latest(model))
        watched = watched_versions(stream, position, versions)
        return dict.fromkeys(run for version in watched if (run := version.run) is not None)

    def _fetch_runs(self, runs: Sequence[str]) -> Runs:
        """Return runs: one alone by its id, the others of its experiment by one request."""
        found: dict[str, Run | None] = {}
        left = list(runs)
        while left:
            run, *left = left
            found[run] = self._get_run(run)
            experiment = alone.info.experiment_id if (alone := found[run]) is not None else ""
            if left and experiment:
                for start in range(0, len(left), RUNS_AT_ONCE):
                    found |= self.server.search_runs(left[start : start + RUNS_AT_ONCE], [experiment])
                left = [each for each in left if each not in found]
        return found

    def _get_run(self, run: str) -> Run | None:
        try:
            found = self.server.get_run(run)
        except NotFound:
            self._memory.gone |= {run}
            return None
        if found.info.experiment_id:
            self._memory.experiments.setdefault(found.info.experiment_id, "")
        return found

    def _name_experiment(self, experiment: str) -> str:
        """Return the name of an experiment, asked for once; its id if it was deleted."""
        known = self._memory.experiments
        if not known.get(experiment):
            try:
                known[experiment] = self.server.get_experiment_name(experiment) or experiment
            except NotFound:
                known[experiment] = experiment
        return known[experiment]

    def _describe(self, version: ModelVersion, run: Run | None) -> FoundVersion:
        lineage = {"model": version.name, "version": str(version.version), "source": version.source}
        ended = None
        if version.run is not None:
            lineage["run"] = version.run
        if run is not None:
            ended = run.info.end_time
            lineage["run_name"] = run.info.run_name
            lineage["commit"] = next((tag.value for tag in run.data.tags if tag.key == COMMIT_TAG), "")
            if run.info.experiment_id:
                lineage["experiment"] = self._name_experiment(run.info.experiment_id)
        return FoundVersion(
            key=_key(version),
            place=_key(version),
            trained_at=time_of(ended or version.creation_timestamp),
            tags=_labels((tag.key, tag.value) for tag in version.tags),
            metrics=_metrics(run),
            lineage=_labels((key, value) for key, value in lineage.items() if value),
        )


class MlflowSource:
    """One registered model, or one alias of it."""

    def __init__(self, stream: MlflowStream, access: ReadAccess, poll: Poll) -> None:
        self._stream, self._access, self._poll = stream, access, poll

    def list_since(self, cursor: str) -> Listing:
        """See `Source`."""
        self._access.check_url(self._stream.uri)
        position = Position.parse(cursor)
        seen = self._poll.look()
        if position.created == 0 and seen.models is None:
            seen = Seen(models=self._poll.models())
        if seen.models is not None:
            return self._list_news(position, seen.models)
        if self._poll.is_missing(self._stream.model):
            raise self._not_registered()
        if seen.runs is not None:
            return self._list_measured(position, seen.versions, seen.runs)
        return self._list_tagged(position, seen.versions)

    def open(self, version: FoundVersion) -> ArtifactSource:
        """See `Source`."""
        self._access.check_url(self._stream.uri)
        server, model = self._poll.server, self._stream.model
        number, _, created = version.place.partition("@")
        try:
            found = server.get_version(model, int(number))
            uri = server.locate(model, found.version)
        except NotFound as error:
            raise ArtifactMissing(error.message) from error
        if created != str(found.creation_timestamp):
            msg = f"version {number} of model {model!r} of {server.uri} was deleted; there is another one of its number"
            raise ArtifactMissing(msg)
        return open_artifacts(server, uri, self._access)

    def _list_news(self, position: Position, models: Mapping[str, RegisteredModel]) -> Listing:
        model = models.get(self._stream.model)
        if model is None:
            raise self._not_registered()
        position = position.within(model)
        if self._stream.alias is not None:
            return self._list_move(position, _aliased(model, self._stream.alias))
        if _latest(model) > position.version:
            return self._list_new(position)
        return Listing(cursor=position.cursor)

    def _list_move(self, position: Position, number: int) -> Listing:
        """Return the version to which the alias has moved. One that is removed stays where it was."""
        if number in {0, position.version}:
            return Listing(cursor=position.cursor)
        try:
            version = self._poll.server.get_version(self._stream.model, number)
        except NotFound:
            return Listing(cursor=position.cursor)
        if version.status != READY:
            return Listing(cursor=position.cursor)
        moved = Position(position.sequence + 1, number, position.created)
        return self._listing(moved, [version])[0]

    def _list_new(self, position: Position) -> Listing:
        """Return the versions after the position, up to one that is not ready yet."""
        found = self._poll.server.search_versions_after(self._stream.model, position.version, NEW_AT_ONCE)
        whole = list(takewhile(lambda version: version.status != PENDING, found))
        if not whole:
            return Listing(cursor=position.cursor)
        after = Position(position.sequence, whole[-1].version, position.created)
        listing = self._listing(after, [version for version in whole if version.status == READY])[0]
        return listing.model_copy(update={"more": len(whole) == NEW_AT_ONCE})

    def _list_tagged(self, position: Position, versions: Sequence[ModelVersion]) -> Listing:
        """Return new versions; if there are none, the watched ones if a tag of one has changed."""
        if self._stream.alias is None and any(self._is_new(position, version) for version in versions):
            listing = self._list_new(position)
            if listing.cursor != position.cursor:
                return listing
        watched = watched_versions(self._stream, position, versions)
        if not watched or _digest_tags(watched) == position.tags:
            return Listing(cursor=position.cursor)
        return self._list_again(position, watched)

    def _list_measured(self, position: Position, versions: Sequence[ModelVersion], runs: Runs) -> Listing:
        """Return the watched versions, with their present tags, if the facts of a run have changed."""
        watched = watched_versions(self._stream, position, versions)
        asked = {run for version in watched if (run := version.run) is not None}
        if not asked or not asked <= runs.keys() or _digest_runs(watched, runs) == position.runs:
            return Listing(cursor=position.cursor)
        return self._list_again(position, watched_versions(self._stream, position, self._poll.versions()), runs)

    def _list_again(self, position: Position, watched: Sequence[ModelVersion], known: Runs | None = None) -> Listing:
        listing, runs = self._listing(position, watched, known)
        position = position._replace(tags=_digest_tags(watched), runs=_digest_runs(watched, runs))
        return listing.model_copy(update={"cursor": position.cursor})

    def _is_new(self, position: Position, version: ModelVersion) -> bool:
        return version.name == self._stream.model and version.version > position.version

    def _listing(
        self, position: Position, versions: Sequence[ModelVersion], known: Runs | None = None
    ) -> tuple[Listing, Runs]:
        described, runs = self._poll.describe(versions, known)
        if self._stream.alias is not None:
            described = [each.model_copy(update={"key": f"{position.sequence}:{each.key}"}) for each in described]
        return Listing(cursor=position.cursor, versions=tuple(described)), runs

    def _not_registered(self) -> NotFound:
        return NotFound(f"{self._poll.server.uri} has no registered model {self._stream.model!r}")


class MlflowKind:
    """MLflow servers that the operator allows. `transport` and `limits` are for tests."""

    name = "mlflow"

    def __init__(self, transport: httpx.BaseTransport | None = None, limits: Limits | None = None) -> None:
        self._connections = Connections(transport, limits)
        self._memories: dict[str, Memory] = {}

    def upstream(self, settings: MlflowStream) -> str:
        """See `SourceKind`: the server's URL."""
        return base_url(settings.uri)

    def check(self, settings: MlflowStream, access: ReadAccess) -> None:
        """See `SourceKind`."""
        base_url(settings.uri)
        access.check_url(settings.uri)

    def connect(self, streams: Sequence[StreamRequest]) -> Sequence[MlflowSource]:
        """See `SourceKind`: the sources of one server share the requests of a poll."""
        polls: dict[str, Poll] = {}
        for uri in {base_url(each.settings.uri) for each in streams}:
            of_server = [each for each in streams if base_url(each.settings.uri) == uri]
            server = MlflowServer(uri, of_server[0].access.authorization_for(uri), self._connections)
            allowed = [each.settings for each in of_server if _may_read(each)]
            polls[uri] = Poll(server, allowed, self._memories.setdefault(uri, Memory()))
        return [MlflowSource(each.settings, each.access, polls[base_url(each.settings.uri)]) for each in streams]


def _may_read(asked: StreamRequest) -> bool:
    with suppress(PathNotAllowed):
        asked.access.check_url(asked.settings.uri)
        return True
    return False


def watched_versions(
    stream: MlflowStream, position: Position, versions: Sequence[ModelVersion]
) -> Sequence[ModelVersion]:
    """Return the listed versions of a stream whose tags and metrics are looked at again, lowest first."""
    of_model = [version for version in versions if version.name == stream.model and version.status == READY]
    if stream.alias is not None:
        return [version for version in of_model if version.version == position.version]
    return [version for version in of_model if version.version <= position.version][-WATCHED:]


def _latest(model: RegisteredModel) -> int:
    return max((version.version for version in model.latest_versions), default=0)


def _aliased(model: RegisteredModel, alias: str) -> int:
    """Return the version that an alias names; 0 for none."""
    return next((each.version for each in model.aliases if each.alias == alias), 0)


def _key(version: ModelVersion) -> str:
    return f"{version.version}@{version.creation_timestamp}"


def _labels(pairs: Iterable[tuple[str, str]]) -> Mapping[str, str]:
    """Return the labels that a version can have: long ones are cut, and those after the 256th are left out."""
    cut = sorted((key[:LONGEST_LABEL], value[:LONGEST_LABEL]) for key, value in pairs)
    return dict(cut[:MOST_LABELS])


def _metrics(run: Run | None) -> Mapping[str, float]:
    """Return the finite metrics of a run: at most 256 by name, those of the system (`system/`) last."""
    if run is None:
        return {}
    finite = [each for each in run.data.metrics if abs(each.value) < LARGEST and len(each.key) <= LONGEST_LABEL]
    ordered = sorted(finite, key=lambda each: (each.key.startswith("system/"), each.key))
    return {each.key: each.value for each in ordered[:MOST_LABELS]}


def _digest_tags(versions: Iterable[ModelVersion]) -> str:
    return _digest(repr((_key(each), sorted((tag.key, tag.value) for tag in each.tags))) for each in versions)


def _digest_runs(versions: Iterable[ModelVersion], runs: Runs) -> str:
    return _digest(f"{_key(each)} {_facts(runs.get(each.run or ''))}" for each in versions)


def _facts(run: Run | None) -> str:
    if run is None:
        return ""
    tags = sorted((tag.key, tag.value) for tag in run.data.tags if tag.key == COMMIT_TAG)
    return repr((run.info.run_name, run.info.end_time, sorted(_metrics(run).items()), tags))


def _digest(lines: Iterable[str]) -> str:
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()[:DIGITS]
