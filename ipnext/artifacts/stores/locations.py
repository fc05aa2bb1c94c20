"""Stores and sources by their uris."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Final
from urllib.parse import unquote, urlsplit

from ipnext.artifacts.port import ArtifactStore
from ipnext.artifacts.sources import ArtifactSource, DirectorySource, not_allowed
from ipnext.artifacts.stores.file_store import FileArtifactStore
from ipnext.artifacts.stores.s3_source import BucketSource
from ipnext.artifacts.stores.s3_store import S3ArtifactStore
from ipnext.errors import InvalidInput

OWNER: Final = "{owner}"
"""In a root or a bucket's prefix: the owner of the model that is published."""

FORMS = ("file:///DIRECTORY", "s3://BUCKET/PREFIX")


def open_store(uri: str, *, endpoint_url: str | None = None, reserve_bytes: int = 0) -> ArtifactStore:
    """Return the artifact store of a uri. `endpoint_url` is for an S3 server other than AWS.

    `reserve_bytes`: free space that the store's writes and fetches leave on a disk. InvalidInput names the forms.
    """
    scheme, place, path = _parts(uri)
    if scheme == "file":
        return FileArtifactStore(Path(path), reserve_bytes=reserve_bytes)
    return S3ArtifactStore(place, path.strip("/"), endpoint_url, reserve_bytes=reserve_bytes)


def open_source(
    uri: str, *, roots: Sequence[Path] = (), buckets: Sequence[str] = (), endpoint_url: str | None = None
) -> ArtifactSource:
    """Return the source of a client's uri: a directory below one of `roots`, or a prefix in one of `buckets`.

    An entry of `buckets` is BUCKET, or BUCKET/PREFIX for the keys below a prefix. PathNotAllowed names the allowed
    ones; links are followed first. InvalidInput if the uri has another form.
    """
    scheme, place, path = _parts(uri)
    if scheme == "file":
        return DirectorySource(Path(path), roots=roots)
    check_bucket(uri, buckets)
    return BucketSource(place, path.strip("/"), endpoint_url)


def check_bucket(uri: str, buckets: Sequence[str]) -> tuple[str, str]:
    """Return bucket and prefix of s3://BUCKET/PREFIX, which has to be in one of `buckets`, as in `open_source`.

    Raises PathNotAllowed or InvalidInput.
    """
    _, place, path = _parts(uri)
    given = (place, *path.strip("/").split("/"))
    if not any(_is_below(given, tuple(bucket.strip("/").split("/"))) for bucket in buckets):
        fault = f"uri: {uri!r} may not be read"
        raise not_allowed(fault, uri, "buckets", tuple(buckets))
    return place, path.strip("/")


def readable_for(owner: str, allowed: Iterable[str], *, shared: bool) -> tuple[str, ...]:
    """Return roots or buckets from which models of an owner are published.

    These are its own (`OWNER` in a path), and with `shared` those of all.
    """
    return tuple(each.replace(OWNER, owner) for each in allowed if shared or OWNER in each)


def _is_below(given: Sequence[str], allowed: Sequence[str]) -> bool:
    """Return whether steps begin with the allowed ones. Servers that keep objects as files may follow `..`."""
    return given[: len(allowed)] == allowed and not {"", ".", ".."} & set(given[1:-1]) and given[-1] not in {".", ".."}


def _parts(uri: str) -> tuple[str, str, str]:
    """Return scheme, bucket and path. InvalidInput if the form is unknown."""
    try:
        split = urlsplit(uri)
    except ValueError:
        split = urlsplit("")
    path = unquote(split.path)
    plain = not (split.query or split.fragment) and "\0" not in path
    if plain and split.scheme == "file" and split.netloc in {"", "localhost"} and path.startswith("/"):
        return "file", "", path
    if plain and split.scheme == "s3" and split.netloc:
        return "s3", split.netloc, path
    msg = f"uri: {uri!r} is not of a known form; allowed: {', '.join(FORMS)}"
    raise InvalidInput(msg, field="uri", value=uri, allowed=FORMS)
