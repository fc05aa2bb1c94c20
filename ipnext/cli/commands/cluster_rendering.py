"""The target `kubernetes` of `ipnext render`: what an agent would create in its cluster."""

import os
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Final

import yaml

from ipnext.cli.commands.rendering import Rendering, RenderRequest
from ipnext.components.settings import component_settings
from ipnext.infra.kubernetes.documents import PodTemplates, read_common, read_templates
from ipnext.infra.kubernetes.rendering import render_model
from ipnext.infra.kubernetes.settings import KubernetesSettings, kubernetes_settings
from ipnext.infra.region_commands import RegionCommands
from ipnext.infra.settings import AgentSettings
from ipnext.model.manifest.manifest import ModelManifest

_DEFAULTS: Final = {"IMAGE": "ipnext", "CERTIFICATE_SECRET": "ipnext-host", "HARDWARE_FILE": os.devnull}
"""Of `IPNEXT_KUBERNETES_...` settings that are not set."""


def render_kubernetes(request: RenderRequest) -> Rendering:
    """Return the pods and budgets of a model, by the settings of an agent in this environment."""
    settings, templates = _cluster(request.manifest)
    commands = RegionCommands(region=request.region, artifacts=request.artifacts, settings=AgentSettings())
    domain = component_settings().trust_domain
    documents = list(render_model(request.manifest, commands, settings, templates, trust_domain=domain))
    return Rendering(documents, _documents(documents))


def _cluster(manifest: ModelManifest) -> tuple[KubernetesSettings, PodTemplates]:
    """Return the settings, with defaults for those that are not set; without a file, all kinds are as the template."""
    set_names = {name.removeprefix("IPNEXT_KUBERNETES_") for name in os.environ}
    settings = kubernetes_settings(
        **{name.lower(): value for name, value in _DEFAULTS.items() if name not in set_names}
    )
    if "HARDWARE_FILE" in set_names:
        return settings, read_templates(settings)
    kinds: Mapping[str, Any] = {option.kind: {} for part in manifest.spec.hosted_parts for option in part.hardware}
    return settings, PodTemplates(common=read_common(settings), by_hardware=kinds)


def _documents(documents: Iterable[object]) -> Iterator[str]:
    yield yaml.safe_dump_all(documents, sort_keys=False, explicit_start=True).rstrip("\n")
