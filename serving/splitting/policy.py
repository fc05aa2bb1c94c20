"""Reads a policy file: the mapping of `spec.split` alone, or a whole manifest of kind Model that has one."""

from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from ipnext.errors import InvalidInput
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.manifest.parser import parse_manifest
from ipnext.model.manifest.split import SplitPolicy
from ipnext.model.validation_errors import invalid_input


def read_policy(path: Path) -> SplitPolicy:
    """Read the policy in a YAML file. InvalidInput names the field, the value and the allowed ones."""
    try:
        document = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        msg = f"policy: {str(path)!r} cannot be read as YAML: {' '.join(str(error).split())}"
        raise InvalidInput(msg, field="policy", value=str(path)) from error
    return parse_policy(document)


def parse_policy(document: Any) -> SplitPolicy:
    """Parse the policy from plain data. InvalidInput."""
    if not isinstance(document, dict):
        msg = f"policy: must be a mapping with parts and default, got {type(document).__name__}"
        raise InvalidInput(msg, field="policy", allowed=("parts", "default"))
    if "kind" in document:
        return _of_manifest(document)
    try:
        return SplitPolicy.model_validate(document)
    except ValidationError as error:
        raise invalid_input(error, SplitPolicy) from error


def _of_manifest(document: dict[str, Any]) -> SplitPolicy:
    manifest = parse_manifest(document)
    if not isinstance(manifest, ModelManifest) or manifest.spec.split is None:
        msg = "spec.split: the manifest has none; write parts and default there"
        raise InvalidInput(msg, field="spec.split")
    return manifest.spec.split
