"""Built-in stages that only an entry inserts: their settings, and the models that can't have them."""

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from ipnext.model.deployment.deployment import SERVING_ENGINES
from ipnext.model.lifecycle.shadow import ShadowSettings
from ipnext.model.lifecycle.stages import SHADOW
from ipnext.model.manifest.manifest import ModelSpec
from ipnext.model.validation_errors import invalid_input


def check_settings(settings: Mapping[str, Any]) -> None:
    """Check the settings of a shadow. Raises InvalidInput."""
    shadow_settings(settings)


def shadow_settings(settings: Mapping[str, Any]) -> ShadowSettings:
    """Return the settings of a shadow. Raises InvalidInput."""
    try:
        return ShadowSettings.model_validate(dict(settings))
    except ValidationError as error:
        raise invalid_input(error, ShadowSettings) from error


def find_misfit(stage: str, spec: ModelSpec) -> str:
    """Return why a model can't have an optional stage; empty if it can."""
    generating = [part for part in spec.parts if part.engine in SERVING_ENGINES] if stage == SHADOW else []
    if not generating:
        return ""
    named = ", ".join(f"{part.name!r} ({part.engine})" for part in generating)
    return (
        f"the model has parts that generate: {named}. Two samples of one model differ, so generated answers and "
        "streams are not compared, and such a model has no shadow"
    )
