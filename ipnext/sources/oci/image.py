"""Manifests of OCI images whose layers are the files of a snapshot, unpacked and uncompressed.

Both forms are read: that of `oras push`, and that of the ModelPack specification of the CNCF.
"""

import re
from collections.abc import Iterator, Mapping
from datetime import UTC, datetime
from typing import Annotated, Any, Final

from pydantic import ConfigDict, Field, StringConstraints
from pydantic.alias_generators import to_camel

from ipnext.artifacts.bounded_json import parse_bounded, validate_document
from ipnext.artifacts.layout import check_paths
from ipnext.errors import InvalidInput
from ipnext.model.registry.registry import MOST_FILES, SIGNATURE_FILE, SNAPSHOT_FILE, ArtifactFile
from ipnext.model.value import Value

IMAGE: Final = "application/vnd.oci.image.manifest.v1+json"
INDEX: Final = "application/vnd.oci.image.index.v1+json"
DOCKER: Final = "application/vnd.docker.distribution.manifest"
ACCEPTED: Final = f"{IMAGE}, {INDEX}, {DOCKER}.v2+json, {DOCKER}.list.v2+json"
"""Forms of Docker are asked for, so that a registry does not convert what a tag names: the digest would be another."""
LARGEST_BYTES: Final = 4 << 20
"""Of a manifest: as much as the specification asks registries to take."""
MOST_SEPARATORS: Final = 200_000
MOST_LAYERS: Final = MOST_FILES + 100
"""A snapshot's files, and what may stand beside them, such as a README."""
LONGEST_PATH: Final = 1024
LONGEST_LABEL: Final = 5000
MOST_ANNOTATIONS: Final = 128
"""Annotations that become tags."""

TITLE: Final = "org.opencontainers.image.title"
FILE_PATH: Final = "org.cncf.model.filepath"
CREATED: Final = "org.opencontainers.image.created"
LINEAGE: Final[Mapping[str, str]] = {
    "org.opencontainers.image.revision": "commit",
    "org.opencontainers.image.source": "source",
}
"""Annotation -> fact of the lineage."""
PACKED_BY_ORAS: Final = "io.deis.oras.content.unpack"
MODEL: Final = "application/vnd.cncf.model.manifest.v1+json"
"""`artifactType` of a ModelPack, by which it is found in an index."""
ORAS_FILE: Final = "application/vnd.oci.image.layer.v1.tar"
"""Type that `oras push` gives to a plain file, although it is no archive."""
MODEL_LAYER: Final = "application/vnd.cncf.model."
ALLOWED_LAYERS: Final = (
    f"{MODEL_LAYER}*.raw",
    f"{ORAS_FILE} of a file that `oras push` was given",
    "other types of single files, such as application/octet-stream",
)
_PACKED: Final = frozenset({"tar", "gzip", "gz", "tgz", "zstd", "zip", "bzip2", "xz"})


class Document(Value):
    """Part of a document of a registry; unknown fields are left."""

    model_config = ConfigDict(extra="ignore", alias_generator=to_camel)


class Descriptor(Document):
    """A layer of an image, or an image of an index."""

    media_type: str = ""
    digest: Annotated[str, StringConstraints(pattern=r"^sha256:[0-9a-f]{64}$")]
    size: int = Field(ge=0, lt=2**63, strict=True)
    annotations: Mapping[str, str] | None = None
    urls: tuple[str, ...] | None = None
    artifact_type: str = ""

    def annotation(self, name: str) -> str:
        """Return an annotation; empty without it."""
        return (self.annotations or {}).get(name, "")


class Image(Document):
    """An image manifest."""

    media_type: str = ""
    layers: tuple[Descriptor, ...] = Field(max_length=MOST_LAYERS)
    annotations: Mapping[str, str] | None = None


class Index(Document):
    """Several images below one tag."""

    manifests: tuple[Descriptor, ...] = Field(max_length=MOST_LAYERS)
    annotations: Mapping[str, str] | None = None


def read_manifest(content: bytes, subject: str) -> Image | Index:
    """Return a manifest. InvalidInput names its first fault."""
    try:
        found = parse_bounded(content, most_separators=MOST_SEPARATORS)
        kind = _kind_of(found)
        return validate_document(found, kind)
    except InvalidInput as fault:
        raise _of(subject, fault) from None


def choose_image(index: Index, subject: str) -> Descriptor:
    """Return the image of an index that is read: its only one, or its only model. Raises InvalidInput."""
    images = index.manifests
    models = [each for each in images if each.artifact_type == MODEL]
    chosen = images if len(images) == 1 else models
    if len(chosen) != 1:
        msg = (
            f"{subject}: is an index of {len(images)} manifests, {len(models)} of which have the artifactType {MODEL}; "
            "allowed: one manifest, or one with that artifactType. Push the snapshot below a tag of its own"
        )
        raise _invalid(msg, "manifests", len(images))
    return chosen[0]


def files_of(image: Image, subject: str) -> Mapping[str, ArtifactFile]:
    """Return path -> file of each layer. InvalidInput names the first layer that is no plain file, or its path."""
    files: dict[str, ArtifactFile] = {}
    for number, layer in enumerate(image.layers):
        path = layer.annotation(FILE_PATH) or layer.annotation(TITLE)
        fault = _fault_of(layer, path) or ("has the path of another layer" if path in files else "")
        if fault:
            msg = f"{subject}: layer {number} ({path[:LONGEST_PATH]!r}) {fault}"
            raise _invalid(msg, f"layers.{number}", path[:LONGEST_PATH])
        files[path] = ArtifactFile(path=path, sha256=layer.digest.removeprefix("sha256:"), size_bytes=layer.size)
    try:
        check_paths([file for path, file in files.items() if path not in {SNAPSHOT_FILE, SIGNATURE_FILE}])
    except InvalidInput as fault:
        raise _of(subject, fault) from fault
    return files


def read_facts(annotations: Mapping[str, str], digest: str) -> dict[str, Any]:
    """Return the fields `trained_at`, `tags` and `lineage` of a FoundVersion from a manifest's annotations.

    Annotations that can't be shown are left out: a version is not refused for them.
    """
    shown = dict(_list_printable(annotations))
    lineage = {fact: shown[name] for name, fact in LINEAGE.items() if name in shown}
    tags = {name: value for name, value in shown.items() if name not in {CREATED, *LINEAGE}}
    return {
        "trained_at": _read_time(shown.get(CREATED, "")),
        "tags": dict(list(tags.items())[:MOST_ANNOTATIONS]),
        "lineage": {**lineage, "digest": digest},
    }


def _kind_of(found: Any) -> type[Image] | type[Index]:
    fields = found if isinstance(found, dict) else {}
    if fields and fields.get("schemaVersion") != 2:
        msg = f"schemaVersion: {str(fields.get('schemaVersion'))[:40]!r} is not read; allowed: 2"
        raise _invalid(msg, "schemaVersion", None)
    if "manifests" in fields and "layers" in fields:
        msg = "has both layers and manifests; allowed: one of them"
        raise _invalid(msg, "layers", None)
    return Index if "manifests" in fields else Image


def _fault_of(layer: Descriptor, path: str) -> str:
    """Return why a layer is no plain file; empty if it is."""
    kind = layer.media_type
    if layer.urls:
        return "has urls: content of other servers is not read; push it to the registry"
    if _is_packed(kind) or layer.annotation(PACKED_BY_ORAS) == "true":
        allowed = "; ".join(ALLOWED_LAYERS)
        return (
            f"is packed ({kind[:100]!r}), and only plain files are read; allowed: {allowed}. Push each file by itself"
        )
    if not path:
        return f"has no path: neither the annotation {TITLE} nor {FILE_PATH}"
    if not path.isprintable():
        return "has a path with characters that cannot be printed"
    return f"has a path of more than {LONGEST_PATH} characters" if len(path) > LONGEST_PATH else ""


def _is_packed(media_type: str) -> bool:
    if media_type.startswith(MODEL_LAYER):
        return not media_type.endswith(".raw")
    return media_type != ORAS_FILE and not _PACKED.isdisjoint(re.split(r"[./+;-]", media_type.lower()))


def _list_printable(annotations: Mapping[str, str]) -> Iterator[tuple[str, str]]:
    for name, value in annotations.items():
        if name.isprintable() and value.isprintable() and max(len(name), len(value)) <= LONGEST_LABEL:
            yield name, value


def _read_time(text: str) -> datetime | None:
    """Return a time by RFC 3339; None for anything else, and without a zone."""
    try:
        found = datetime.fromisoformat(text)
        return found.astimezone(UTC) if found.tzinfo else None
    except (ValueError, OverflowError):
        return None


def _of(subject: str, fault: InvalidInput) -> InvalidInput:
    return _invalid(f"{subject}: {fault.message}", fault.field, fault.value)


def _invalid(message: str, field: str | None, value: object) -> InvalidInput:
    return InvalidInput(message, field=field, value=value)
