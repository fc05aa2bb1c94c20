"""Parsing of manifests of every kind, from YAML or from plain data."""

from collections.abc import Mapping
from typing import TypeAlias

from pydantic import ValidationError

from ipnext.errors import InvalidInput
from ipnext.model.access.owner import OwnerManifest
from ipnext.model.echoes import show_value
from ipnext.model.fleet import FleetManifest
from ipnext.model.manifest.freeze import FreezeManifest
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.manifest.yaml_documents import read_documents
from ipnext.model.validation_errors import invalid_input

Manifest: TypeAlias = ModelManifest | FleetManifest | FreezeManifest | OwnerManifest
KINDS: Mapping[str, type[Manifest]] = {
    "Model": ModelManifest,
    "Fleet": FleetManifest,
    "Freeze": FreezeManifest,
    "Owner": OwnerManifest,
}


def parse_manifests(text: str) -> tuple[Manifest, ...]:
    """Return one or more YAML documents as manifests.

    Raises InvalidInput with the field's path and the allowed values.
    """
    documents = [document for document in read_documents(text) if document is not None]
    if not documents:
        msg = "the manifest is empty; it needs apiVersion, kind, metadata and spec"
        raise InvalidInput(msg)
    return tuple(parse_manifest(document) for document in documents)


def parse_manifest(document: object) -> Manifest:
    """Return one manifest from plain data. Raises InvalidInput."""
    if not isinstance(document, dict):
        msg = f"a manifest is a mapping with apiVersion, kind, metadata and spec, not a {type(document).__name__}"
        raise InvalidInput(msg)
    kind = document.get("kind")
    model = KINDS.get(kind) if isinstance(kind, str) else None
    if model is None:
        msg = f"kind: {show_value(kind)} is not known; allowed: {', '.join(KINDS)}"
        raise InvalidInput(msg, field="kind", value=kind, allowed=tuple(KINDS))
    try:
        return model.model_validate(document)
    except ValidationError as error:
        raise invalid_input(error, model) from error
