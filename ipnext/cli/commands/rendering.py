"""What would run for a manifest: command lines of engines, or objects of a cluster. Nothing is run.

A target is an entry point of the group `ipnext.render_targets`, imported when it is called.
"""

import re
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from importlib.metadata import entry_points
from pathlib import Path
from typing import Annotated, Final, NamedTuple

import typer

from ipnext.cli.command import Command
from ipnext.cli.output import Form, Output, write
from ipnext.cli.plugin_group import INSTALL
from ipnext.errors import InvalidInput
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.manifest.parser import parse_manifests
from ipnext.model.value import NAME_PATTERN
from ipnext.names import RENDER_GROUP


@dataclass(frozen=True, kw_only=True)
class RenderRequest:
    """What is to be rendered, and for what."""

    manifest: ModelManifest
    region: str
    artifacts: str
    part: str | None = None
    nodes: int = 1
    allowed_arguments: tuple[str, ...] = ()
    allowed_environment: tuple[str, ...] = ()


class Rendering(NamedTuple):
    """The answer: a value for programs, and lines for people."""

    value: object
    lines: Iterable[str]


Target = Callable[[RenderRequest], Rendering]


def render(  # noqa: PLR0913 - options
    argument: Annotated[Path | None, typer.Argument(metavar="MODEL.yaml", help="A manifest of kind Model.")] = None,
    *,
    file: Annotated[Path | None, typer.Option("-f", "--file", metavar="FILE", help="The same as an option.")] = None,
    target: Annotated[
        str, typer.Option(help="vllm: commands and environment of a part on vLLM; kubernetes: objects of a cluster.")
    ] = "vllm",
    part: Annotated[str | None, typer.Option(help="vllm: the part; needed if several run on vLLM.")] = None,
    nodes: Annotated[int, typer.Option(min=1, help="vllm: hosts that one replica spreads over.")] = 1,
    allow_argument: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="vllm: an argument that hosts allow beyond the list.")
    ] = None,
    allow_environment: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="vllm: a variable that hosts allow beyond the list.")
    ] = None,
    region: Annotated[str, typer.Option(help="kubernetes: name of the region.")] = "local",
    artifacts: Annotated[
        str, typer.Option(metavar="URI", help="kubernetes: artifact store of the region.")
    ] = "s3://ipnext/artifacts",
    output: Output = Form.TABLE,
) -> None:
    """Print what would run for a model; nothing is run, and no server is called."""
    if not re.fullmatch(NAME_PATTERN, region):
        msg = f"--region: must be a name of lower-case letters, digits and dashes, got {region!r}"
        raise InvalidInput(msg, field="region", value=region)
    given = [path for path in (argument, file) if path is not None]
    if len(given) != 1:
        msg = f"file: give one manifest, as MODEL.yaml or with -f, got {len(given)}"
        raise InvalidInput(msg, field="file")
    request = RenderRequest(
        manifest=_manifest(given[0]),
        region=region,
        artifacts=artifacts,
        part=part,
        nodes=nodes,
        allowed_arguments=tuple(allow_argument or ()),
        allowed_environment=tuple(allow_environment or ()),
    )
    rendering = _target(target)(request)
    write(rendering.value, output, lambda: rendering.lines)


def _target(name: str) -> Target:
    found = {point.name: point for point in entry_points(group=RENDER_GROUP)}
    if name not in found:
        known = sorted(found)
        msg = f"--target: {name!r} is not known; allowed: {', '.join(known)}"
        raise InvalidInput(msg, field="target", value=name, allowed=known)
    try:
        loaded: Target = found[name].load()
    except ImportError as error:
        msg = f"--target: {name!r} can't be loaded ({error}); try: {INSTALL}"
        raise InvalidInput(msg, field="target", value=name) from error
    return loaded


def _manifest(file: Path) -> ModelManifest:
    try:
        text = file.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        msg = f"{file} can't be read: {error}"
        raise InvalidInput(msg, field="file", value=str(file)) from error
    models = [manifest for manifest in parse_manifests(text) if isinstance(manifest, ModelManifest)]
    if len(models) != 1:
        msg = f"file: {file} holds {len(models)} manifests of kind Model; give one"
        raise InvalidInput(msg, field="file", value=str(file))
    return models[0]


_HELP: Final = "Print what would run for a model: commands of an engine, or objects of a cluster."
COMMANDS = (Command("render", _HELP, render),)
