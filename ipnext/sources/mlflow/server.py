"""Requests to one MLflow server: authorization, and limits of bytes, values and time.

The server is not trusted. Every request goes to the origin of its URL, redirects are not followed, and its answers end
after a number of bytes and at a time. Of its error texts only codes are repeated: they may have what was sent to it.
"""

import re
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from functools import cached_property
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Annotated, Any, Final, NamedTuple, TypeVar
from urllib.parse import quote, urlsplit

import httpx
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from ipnext.artifacts.bounded_json import parse_bounded
from ipnext.components.bounded_http import DeadlineTransport, ending_at
from ipnext.errors import ArtifactMissing, InvalidInput, NotFound, Unavailable
from ipnext.model.validation_errors import first_line

API: Final = "api/2.0/mlflow"
ARTIFACTS: Final = "api/2.0/mlflow-artifacts/artifacts"
CREDENTIALS: Final = "IPNEXT_SOURCE_CREDENTIALS_FILE"
MODELS_AT_ONCE: Final = 1_000
"""Most registered models that MLflow returns in one answer."""
VERSIONS_AT_ONCE: Final = 1_000
RUNS_AT_ONCE: Final = 500
MOST_PAGES: Final = 100
LONGEST_FAULT: Final = 300
LONGEST_FILTER: Final = 3_000
"""Characters of a filter in a URL; without one all is listed."""
LATEST_MILLISECONDS: Final = 253_402_300_799_999
"""The end of the year 9999."""

_RUN_ID: Final = re.compile(r"[A-Za-z0-9_.-]{1,128}")
_ERROR_CODE: Final = re.compile(r"[A-Z_]{1,64}")
_MOST_ERROR_BYTES: Final = 64 * 2**10


class Limits(NamedTuple):
    """Limits of one request."""

    answer_bytes: int = 32 * 2**20
    separators: int = 2_000_000
    seconds: float = 60.0
    """For the whole of an answer in JSON."""
    poll_seconds: float = 300.0
    """For all answers in JSON of one poll, or of one version that is read: half of the limit of a poll's activity."""
    connect_seconds: float = 10.0
    silence_seconds: float = 30.0
    """For the next bytes."""
    bytes_per_second: float = 256 * 2**10
    """Slowest transfer of a file, after `seconds`."""


class _Answer(BaseModel):
    """A part of an answer; what is not read here is ignored."""

    model_config = ConfigDict(frozen=True, extra="ignore")


Text = Annotated[str, Field(max_length=100_000)]
Number = Annotated[int, Field(ge=0, le=10**15)]
Milliseconds = Annotated[int, Field(ge=0, le=LATEST_MILLISECONDS)]


class Pair(_Answer):
    """A tag."""

    key: Text
    value: Text = ""


class Alias(_Answer):
    """A name of a version."""

    alias: Text
    version: Number


class ModelVersion(_Answer):
    """A version of a registered model."""

    name: Text
    version: Number
    creation_timestamp: Milliseconds = 0
    source: Text = ""
    run_id: Text = ""
    status: Text = "READY"
    tags: tuple[Pair, ...] = ()

    @property
    def run(self) -> str | None:
        """Its training run, if it has one."""
        return self.run_id if _RUN_ID.fullmatch(self.run_id) else None


class RegisteredModel(_Answer):
    """A registered model, with the newest version of each stage."""

    name: Text
    creation_timestamp: Milliseconds = 0
    latest_versions: tuple[ModelVersion, ...] = ()
    aliases: tuple[Alias, ...] = ()


class Metric(_Answer):
    """The last value of a metric; MLflow writes NaN and Infinity as text."""

    key: Text
    value: float = 0.0


class RunInfo(_Answer):
    """A training run. Its user is not read."""

    run_id: Text
    run_name: Text = ""
    experiment_id: Text = ""
    end_time: Milliseconds | None = None
    artifact_uri: Text = ""


class RunData(_Answer):
    """Metrics and tags of a run."""

    metrics: tuple[Metric, ...] = ()
    tags: tuple[Pair, ...] = ()


class Run(_Answer):
    """A training run."""

    info: RunInfo
    data: RunData = RunData()


class ListedFile(_Answer):
    """An entry of an artifact directory; the path is relative to that."""

    path: Text
    is_dir: bool = False
    file_size: Annotated[int, Field(ge=0, lt=2**63)] | None = None


class _ModelPage(_Answer):
    registered_models: tuple[RegisteredModel, ...] = ()
    next_page_token: Text = ""


class _VersionPage(_Answer):
    model_versions: tuple[ModelVersion, ...] = ()


class _OneVersion(_Answer):
    model_version: ModelVersion


class _Location(_Answer):
    artifact_uri: Text


class _OneRun(_Answer):
    run: Run


class _RunPage(_Answer):
    runs: tuple[Run, ...] = ()


class _ExperimentFacts(_Answer):
    name: Text = ""


class _OneExperiment(_Answer):
    experiment: _ExperimentFacts


class _LoggedModelInfo(_Answer):
    artifact_uri: Text


class _LoggedModel(_Answer):
    info: _LoggedModelInfo


class _OneLoggedModel(_Answer):
    model: _LoggedModel


class _FilePage(_Answer):
    files: tuple[ListedFile, ...] = ()


A = TypeVar("A", bound=_Answer)


class Connections:
    """Connections to servers, made at the first request. `transport` replaces the network."""

    def __init__(self, transport: httpx.BaseTransport | None = None, limits: Limits | None = None) -> None:
        self._transport, self.limits = transport, limits or Limits()

    @cached_property
    def http(self) -> httpx.Client:
        """The client. It keeps no cookies, and reads neither proxies nor passwords from the environment."""
        return httpx.Client(
            transport=self._transport or DeadlineTransport(httpx.create_ssl_context()),
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
            trust_env=False,
            follow_redirects=False,
        )


def base_url(uri: str) -> str:
    """Return the URL of a server without a slash at its end. Raises InvalidInput if it has no valid host or port."""
    try:
        httpx.URL(uri)
        _ = urlsplit(uri).port
    except (httpx.InvalidURL, ValueError) as error:
        msg = f"mlflow.uri: {uri!r} is not the URL of a server: {error}"
        raise InvalidInput(msg, field="mlflow.uri", value=uri) from error
    return uri.rstrip("/")


def time_of(milliseconds: int) -> datetime:
    """Return a time of MLflow."""
    return datetime.fromtimestamp(milliseconds / 1000, UTC)


class MlflowServer:
    """The REST API of one server, for one poll. Errors name what was asked for, and never what it answered.

    Every call raises Unavailable if the server does not give a usable answer in time.
    """

    def __init__(self, uri: str, authorization: str | None, connections: Connections) -> None:
        self.uri = base_url(uri)
        self._authorization = authorization.strip() if authorization else None
        self._connections = connections
        self._spent = 0.0

    def search_models(self, names: Sequence[str]) -> Mapping[str, RegisteredModel]:
        """Return name -> model of those that are registered: one request for up to 1,000 models."""
        found: dict[str, RegisteredModel] = {}
        token = ""
        for _ in range(MOST_PAGES):
            query = {**_of_names(names), "max_results": str(MODELS_AT_ONCE), "page_token": token}
            page = self._read("registered-models/search", "the registered models", _ModelPage, query)
            found |= {model.name: model for model in page.registered_models}
            token = page.next_page_token
            if not token or set(names) <= found.keys():
                break
        return {name: found[name] for name in names if name in found}

    def search_newest_versions(self, names: Sequence[str]) -> Sequence[ModelVersion]:
        """Return the versions of models that were created or changed last, at most 1,000: one request.

        MLflow takes neither a tag nor an alias nor a metric for a change.
        """
        query = {
            **_of_names(names),
            "max_results": str(VERSIONS_AT_ONCE),
            "order_by": "last_updated_timestamp DESC",
        }
        page = self._read("model-versions/search", "the newest model versions", _VersionPage, query)
        return [version for version in page.model_versions if version.name in set(names)]

    def search_versions_after(self, model: str, number: int, most: int) -> Sequence[ModelVersion]:
        """Return the versions of a model with higher numbers, lowest first, at most so many."""
        query = {
            "filter": f"name = {_quoted(model)} AND version_number > {number}",
            "max_results": str(most),
            "order_by": "version_number ASC",
        }
        what = f"the versions of model {model!r} after {number}"
        page = self._read("model-versions/search", what, _VersionPage, query)
        found = {each.version: each for each in page.model_versions if each.name == model and each.version > number}
        return [found[each] for each in sorted(found)[:most]]

    def get_version(self, model: str, number: int) -> ModelVersion:
        """Return a version. Raises NotFound."""
        what = f"version {number} of model {model!r}"
        query = {"name": model, "version": str(number)}
        found = self._read("model-versions/get", what, _OneVersion, query).model_version
        if (found.name, found.version) != (model, number):
            raise self._unusable(what, "is another one")
        return found

    def locate(self, model: str, number: int) -> str:
        """Return the uri of a version's artifacts. Raises NotFound."""
        query = {"name": model, "version": str(number)}
        what = f"the artifacts of version {number} of model {model!r}"
        return self._read("model-versions/get-download-uri", what, _Location, query).artifact_uri

    def locate_logged_model(self, name: str) -> str:
        """Return the uri of the artifacts of a logged model. Raises NotFound."""
        path = f"logged-models/{quote(name, safe='')}"
        return self._read(path, f"logged model {name!r}", _OneLoggedModel).model.info.artifact_uri

    def get_run(self, run: str) -> Run:
        """Return a training run. Raises NotFound."""
        found = self._read("runs/get", f"run {run!r}", _OneRun, {"run_id": run}).run
        if found.info.run_id != run:
            what = f"run {run!r}"
            raise self._unusable(what, "is another one")
        return found

    def search_runs(self, runs: Sequence[str], experiments: Sequence[str]) -> Mapping[str, Run]:
        """Return id -> run of those that are in one of the experiments: one request for up to RUNS_AT_ONCE."""
        asked = list(runs)[:RUNS_AT_ONCE]
        body = {
            "experiment_ids": list(experiments),
            "filter": f"attributes.run_id IN ({', '.join(map(_quoted, asked))})",
            "run_view_type": "ALL",
            "max_results": len(asked),
        }
        found = self._read("runs/search", f"{len(asked)} runs", _RunPage, body=body).runs
        return {run.info.run_id: run for run in found if run.info.run_id in set(asked)}

    def get_experiment_name(self, experiment: str) -> str:
        """Return the name of an experiment. Raises NotFound."""
        query = {"experiment_id": experiment}
        return self._read("experiments/get", f"experiment {experiment!r}", _OneExperiment, query).experiment.name

    def list_artifacts(self, path: str) -> Sequence[ListedFile]:
        """Return the entries of a directory of the artifact proxy; none if there is no such directory."""
        what = f"the artifacts below {path!r}"
        try:
            content = self._ask("GET", ARTIFACTS, what, {"path": path})
        except NotFound:
            return ()
        return self._parse(content, what, _FilePage).files

    def open_artifact(self, path: str, size_bytes: int | None) -> tuple[httpx.Response, float]:
        """Open a file of the artifact proxy; return the answer, which the caller reads and closes, and its end.

        The end is by the monotonic clock. Raises ArtifactMissing.
        """
        what = f"artifact {path!r}"
        limits = self._connections.limits
        ends_at = time.monotonic() + limits.seconds + (size_bytes or 0) / limits.bytes_per_second
        with self._answering(what):
            answer = self._send("GET", f"{ARTIFACTS}/{quote(path)}", {}, None, ends_at)
        with ExitStack() as refused:
            refused.callback(answer.close)
            try:
                with self._answering(what):
                    self._check(answer, what, ends_at)
            except NotFound as error:
                raise ArtifactMissing(error.message) from error
            refused.pop_all()
        return answer, ends_at

    def broken(self, what: str, error: httpx.HTTPError) -> Unavailable:
        """Return the error for a connection that could not be made, or broke."""
        if isinstance(error, httpx.TimeoutException):
            return Unavailable(f"{self.uri} does not send {what} in time")
        if isinstance(error, httpx.ConnectError):
            return Unavailable(f"{self.uri} can't be reached for {what}")
        return Unavailable(f"{self.uri} breaks off its answer for {what} ({type(error).__name__})")

    def _read(
        self,
        path: str,
        what: str,
        kind: type[A],
        query: Mapping[str, str] | None = None,
        *,
        body: Mapping[str, Any] | None = None,
    ) -> A:
        content = self._ask("GET" if body is None else "POST", f"{API}/{path}", what, query, body)
        return self._parse(content, what, kind)

    def _ask(
        self,
        method: str,
        path: str,
        what: str,
        query: Mapping[str, str] | None = None,
        body: Mapping[str, Any] | None = None,
    ) -> bytes:
        limits, began = self._connections.limits, time.monotonic()
        left = limits.poll_seconds - self._spent
        if left <= 0:
            msg = f"{self.uri} answers too slowly: {limits.poll_seconds:g} s were over before {what}"
            raise Unavailable(msg)
        ends_at = began + min(limits.seconds, left)
        given = {key: value for key, value in (query or {}).items() if value}
        try:
            with self._answering(what), closing(self._send(method, path, given, body, ends_at)) as answer:
                self._check(answer, what, ends_at)
                return self._read_body(answer, what, limits.answer_bytes, ends_at)
        finally:
            self._spent += time.monotonic() - began

    def _send(
        self, method: str, path: str, query: Mapping[str, str], body: Mapping[str, Any] | None, ends_at: float
    ) -> httpx.Response:
        headers = {"User-Agent": "ipnext", "Accept-Encoding": "identity"}
        if self._authorization:
            headers["Authorization"] = self._authorization
        limits = self._connections.limits
        timeout = httpx.Timeout(limits.silence_seconds, connect=limits.connect_seconds)
        http = self._connections.http
        request = http.build_request(
            method, f"{self.uri}/{path}", params=query or None, json=body, headers=headers, timeout=timeout
        )
        with ending_at(ends_at):
            return http.send(request, stream=True)

    @contextmanager
    def _answering(self, what: str) -> Iterator[None]:
        try:
            yield
        except httpx.HTTPError as error:
            raise self.broken(what, error) from error

    def _check(self, answer: httpx.Response, what: str, ends_at: float) -> None:
        """Raise the error of an answer that is not the one asked for."""
        status = answer.status_code
        if status == httpx.codes.OK:
            packing = answer.headers.get("content-encoding", "identity").strip().lower()
            if packing not in {"", "identity"}:
                raise self._unusable(what, f"is packed ({packing[:40]!r}), which was not asked for")
            return
        if status == httpx.codes.NOT_FOUND:
            msg = f"{self.uri} has no {what.removeprefix('the ')} (404)"
            raise NotFound(msg)
        msg = f"{self.uri} {self._refusal(answer, status, ends_at)}, asked for {what}"
        raise Unavailable(msg)

    def _refusal(self, answer: httpx.Response, status: int, ends_at: float) -> str:
        if status == httpx.codes.UNAUTHORIZED:
            has = "refuses the credentials" if self._authorization else "asks for credentials, and there are none"
            return f"{has} (401; they are in {CREDENTIALS}, by URL)"
        if status == httpx.codes.FORBIDDEN:
            return f"does not let these credentials read it (403; they are in {CREDENTIALS}, by URL)"
        if status == httpx.codes.TOO_MANY_REQUESTS:
            return "has too many requests (429)"
        if 300 <= status < 400:
            return f"redirects ({status}), which is not followed: name the final URL"
        if status >= 500:
            return f"fails ({status})"
        return f"refuses the request ({status}{self._error_code(answer, ends_at)})"

    def _error_code(self, answer: httpx.Response, ends_at: float) -> str:
        """Return MLflow's code of an error, with a comma before it; empty if it gives none."""
        try:
            content = self._read_body(answer, "an error", _MOST_ERROR_BYTES, ends_at)
            found = parse_bounded(content, most_separators=1_000)
        except (InvalidInput, Unavailable):
            return ""
        code = found.get("error_code") if isinstance(found, dict) else None
        return f", {code}" if isinstance(code, str) and _ERROR_CODE.fullmatch(code) else ""

    def _read_body(self, answer: httpx.Response, what: str, most_bytes: int, ends_at: float) -> bytes:
        content = bytearray()
        with ending_at(ends_at):
            for chunk in answer.iter_raw():
                content += chunk
                if len(content) > most_bytes:
                    raise self._unusable(what, f"is larger than {most_bytes} bytes")
                if time.monotonic() > ends_at:
                    msg = f"{self.uri} does not send {what} in time"
                    raise Unavailable(msg)
        return bytes(content)

    def _parse(self, content: bytes, what: str, kind: type[A]) -> A:
        try:
            found = parse_bounded(content, most_separators=self._connections.limits.separators)
            return kind.model_validate(found)
        except ValidationError as error:
            fault = first_line(error, "the whole of it")[:LONGEST_FAULT]
            raise self._unusable(what, f"is not as MLflow documents it: {fault}") from None
        except InvalidInput as error:
            raise self._unusable(what, error.message[:LONGEST_FAULT]) from None

    def _unusable(self, what: str, why: str) -> Unavailable:
        return Unavailable(f"the answer of {self.uri} for {what} {why}")


def _of_names(names: Sequence[str]) -> Mapping[str, str]:
    """Return the filter of models by their names; none if it would be too long for a URL."""
    text = f"name IN ({', '.join(map(_quoted, names))})"
    plain = not any({"'", '"', "\\"} & set(name) for name in names)
    return {"filter": text} if plain and len(quote(text)) <= LONGEST_FILTER else {}


def _quoted(text: str) -> str:
    quotes = '"' if "'" in text else "'"
    return f"{quotes}{text}{quotes}"
