"""Sources in the manifest of a model: upstream streams of snapshots that the platform picks up by itself."""

import re
from collections.abc import Mapping
from datetime import timedelta
from ipaddress import ip_address
from pathlib import PurePosixPath
from typing import Annotated, Any, Final, Self
from urllib.parse import urlsplit

from pydantic import AfterValidator, Field, SerializerFunctionWrapHandler, model_serializer, model_validator

from ipnext.model.manifest.durations import parse_duration
from ipnext.model.registry.sources import FoundVersion
from ipnext.model.value import LARGEST_FIGURE, EngineName, Name, WrittenValue

MOST_SOURCES: Final = 64
"""Sources of one model."""
MOST_TAGS: Final = 16
"""Tags of one promotion rule."""
LONGEST_TEXT: Final = 1024
SHORTEST: Final = timedelta(seconds=1)
LONGEST: Final = timedelta(days=30)

_REPOSITORY: Final = re.compile(
    r"(?P<host>[A-Za-z0-9](?:[A-Za-z0-9.-]*[A-Za-z0-9])?(?::[0-9]{1,5})?|\[[0-9a-fA-F:]+\](?::[0-9]{1,5})?)"
    r"/(?P<name>[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*(?:/[a-z0-9]+(?:(?:[._]|__|-+)[a-z0-9]+)*)*)"
)
"""HOST[:PORT]/NAME as in the OCI distribution specification; a host is always given."""
_TAG: Final = re.compile(r"[A-Za-z0-9_][A-Za-z0-9._-]{0,127}")
_TOKEN: Final = re.compile(r"[^\x00-\x1f\x7f]+")

Text = Annotated[str, Field(min_length=1, max_length=LONGEST_TEXT)]


def _interval(text: str) -> str:
    if not SHORTEST <= parse_duration(text) <= LONGEST:
        msg = f"{text!r} is out of range; allowed: 1s to 30d"
        raise ValueError(msg)
    return text


def _absolute(text: str) -> str:
    path = PurePosixPath(text)
    if not path.is_absolute() or ".." in path.parts or "\0" in text:
        msg = f"{text!r} is not an absolute path without `..`"
        raise ValueError(msg)
    return text


def _bucket_uri(text: str) -> str:
    parts = urlsplit(text) if _TOKEN.fullmatch(text) else urlsplit("")
    if parts.scheme != "s3" or not parts.netloc or parts.query or parts.fragment:
        msg = f"{text!r} is not of the form s3://BUCKET/PREFIX, or s3://BUCKET for all of a bucket"
        raise ValueError(msg)
    return text


def _server_url(text: str) -> str:
    parts = urlsplit(text) if _TOKEN.fullmatch(text) else urlsplit("")
    plain = not (parts.query or parts.fragment or "@" in parts.netloc or _may_be_another(parts.path))
    if parts.scheme not in {"http", "https"} or not parts.hostname or not plain:
        msg = f"{text!r} is not the URL of a server: http(s)://HOST[:PORT][/PATH], without credentials"
        raise ValueError(msg)
    if parts.scheme == "http" and not is_loopback(parts.hostname):
        msg = f"{text!r} is not encrypted; allowed: https://, and http:// of loopback"
        raise ValueError(msg)
    return text


def _may_be_another(path: str) -> bool:
    """Return whether a server may take a path for another one, which may belong to another owner."""
    return bool(set("%\\;") & set(path) or "//" in path or {".", ".."} & set(path.split("/")))


def _repository(text: str) -> str:
    host = text.partition("/")[0]
    if _REPOSITORY.fullmatch(text) is None or not ({".", ":"} & set(host) or host == "localhost"):
        msg = f"{text!r} is not of the form HOST[:PORT]/NAME, such as registry.example.com/team/model"
        raise ValueError(msg)
    return text


def _tag(text: str) -> str:
    if _TAG.fullmatch(text) is None:
        msg = f"{text!r} is not a tag: letters, digits, `_`, `.` and `-`, at most 128"
        raise ValueError(msg)
    return text


def is_loopback(host: str) -> bool:
    """Return whether a host is localhost or a loopback address, as it is written."""
    try:
        return host == "localhost" or ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return False


class DirectoryStream(WrittenValue):
    """Snapshot directories that are moved into a directory which the workers can read."""

    path: Annotated[Text, AfterValidator(_absolute)]


class BucketStream(WrittenValue):
    """Snapshots below a prefix of a bucket; each counts once its `snapshot.json` is there."""

    uri: Annotated[Text, AfterValidator(_bucket_uri)]


class MlflowStream(WrittenValue):
    """Versions of a registered model of an MLflow server: every one, or those that get an alias."""

    uri: Annotated[Text, AfterValidator(_server_url)]
    model: Annotated[str, Field(min_length=1, max_length=256, pattern=r"^[^\x00-\x1f\x7f]+$")]
    alias: Annotated[str, Field(min_length=1, max_length=255, pattern=r"^[\w-]+$")] | None = None


class OciStream(WrittenValue):
    """What a tag of an OCI repository names. The digest that it names is pinned."""

    repository: Annotated[Text, AfterValidator(_repository)]
    tag: Annotated[str, AfterValidator(_tag)] = "latest"


class PushStream(WrittenValue):
    """Versions that the training system announces to the API."""


class PluginStream(WrittenValue):
    """A stream of a kind that another distribution registers (entry points `ipnext.sources`)."""

    kind: EngineName
    settings: Mapping[str, Any] = Field(default_factory=dict)


class MetricThreshold(WrittenValue):
    """The range of a metric of the training run."""

    name: Text
    at_least: float | None = Field(default=None, ge=-LARGEST_FIGURE, le=LARGEST_FIGURE)
    at_most: float | None = Field(default=None, ge=-LARGEST_FIGURE, le=LARGEST_FIGURE)

    @model_validator(mode="after")
    def _has_a_bound(self) -> Self:
        if self.at_least is None and self.at_most is None:
            msg = f"{self.name}: at least one of atLeast and atMost has to stand here"
            raise ValueError(msg)
        return self

    def describe_failure(self, metrics: Mapping[str, float]) -> str:
        """Return why metrics do not meet it; empty if they do."""
        if self.name not in metrics:
            return f"it has no metric {self.name!r}"
        value = metrics[self.name]
        if self.at_least is not None and not value >= self.at_least:
            return f"metric {self.name} is {value:g}; at least {self.at_least:g} is asked for"
        if self.at_most is not None and not value <= self.at_most:
            return f"metric {self.name} is {value:g}; at most {self.at_most:g} is asked for"
        return ""


class PromotionRule(WrittenValue):
    """Versions that are published: those with all these tags, and metrics in these ranges. Empty: every version."""

    tags: Mapping[Text, str] = Field(default_factory=dict, max_length=MOST_TAGS)
    metrics: tuple[MetricThreshold, ...] = Field(default=(), max_length=MOST_TAGS)

    def describe_failure(self, version: FoundVersion) -> str:
        """Return why a version is not published; empty if it is."""
        for name, value in sorted(self.tags.items()):
            if version.tags.get(name) != value:
                found = f"is {version.tags[name]!r}" if name in version.tags else "is not set"
                return f"tag {name!r} {found}; {value!r} is asked for"
        return next(filter(None, (each.describe_failure(version.metrics) for each in self.metrics)), "")


Stream = DirectoryStream | BucketStream | MlflowStream | OciStream | PushStream | PluginStream

_FIELDS: Final = ("directory", "s3", "mlflow", "oci", "push", "plugin")


class SourceSpec(WrittenValue):
    """One stream of snapshots of one part. Exactly one of the kinds is given."""

    name: Name
    part: Name | None = None
    """May be left out for a model of one part."""
    every: Annotated[str, AfterValidator(_interval)] = "60s"
    """Interval of the polls, such as `5s` or `15m`."""
    promote: PromotionRule = PromotionRule()
    directory: DirectoryStream | None = None
    s3: BucketStream | None = None
    mlflow: MlflowStream | None = None
    oci: OciStream | None = None
    push: PushStream | None = None
    plugin: PluginStream | None = None

    @model_validator(mode="after")
    def _has_one_kind(self) -> Self:
        given = [field for field in _FIELDS if getattr(self, field) is not None]
        if len(given) != 1:
            what = f"got {' and '.join(given)}" if given else "got none"
            msg = f"{self.name}: exactly one of {', '.join(_FIELDS)} has to stand here; {what}"
            raise ValueError(msg)
        return self

    @property
    def every_seconds(self) -> float:
        """The interval of the polls."""
        return parse_duration(self.every).total_seconds()

    @property
    def kind(self) -> str:
        """The kind of the stream: a built-in one, or the name of a plug-in."""
        if self.plugin is not None:
            return self.plugin.kind
        return next(field for field in _FIELDS if getattr(self, field) is not None)

    @property
    def stream(self) -> Stream:
        """The settings of its kind."""
        found: Stream = next(value for field in _FIELDS if (value := getattr(self, field)) is not None)
        return found

    @model_serializer(mode="wrap")
    def _without_nothing(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        """Leave out the other kinds."""
        plain: dict[str, Any] = serialize(self)
        return {key: value for key, value in plain.items() if value is not None}


def check_sources(sources: tuple[SourceSpec, ...], parts: tuple[str, ...]) -> None:
    """Check that names differ and that each source has a part. Raises ValueError."""
    names = [source.name for source in sources]
    if len(set(names)) != len(names):
        msg = f"sources: names must differ, got {names}"
        raise ValueError(msg)
    for index, source in enumerate(sources):
        if source.part is None and len(parts) > 1:
            msg = f"sources.{index}.part: has to be given for a model of several parts; allowed: {', '.join(parts)}"
            raise ValueError(msg)
        if source.part is not None and source.part not in parts:
            msg = f"sources.{index}.part: {source.part!r} is no part of the model; allowed: {', '.join(parts)}"
            raise ValueError(msg)
