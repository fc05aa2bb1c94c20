"""`ipnext render`: what the hosts of a vLLM part would run. Mounted through the entry point `ipnext.commands`."""

import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Annotated

import typer

from ipnext.cli.output import Form, Output, write
from ipnext.errors import InvalidInput
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.manifest.parser import parse_manifests
from ipnext.model.settings.engine_allowances import EngineAllowances
from serving.genai.command_line.render import ReplicaRendering, render

app = typer.Typer(
    context_settings={"help_option_names": ["-h", "--help"]}, rich_markup_mode=None, pretty_exceptions_enable=False
)


@app.command(name="render")
def render_command(
    file: Annotated[Path, typer.Argument(metavar="MODEL.yaml", help="A manifest of kind Model.")],
    *,
    part: Annotated[str | None, typer.Option(help="The part; needed if several run on vLLM.")] = None,
    nodes: Annotated[int, typer.Option(min=1, help="Hosts that one replica spreads over.")] = 1,
    allow_argument: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="An argument that the hosts allow beyond the list.")
    ] = None,
    allow_environment: Annotated[
        list[str] | None, typer.Option(metavar="NAME", help="A variable that the hosts allow beyond the list.")
    ] = None,
    output: Output = Form.TABLE,
) -> None:
    """Print the commands and the environment of each host of one replica; nothing is run."""
    manifest = _manifest(file)
    allowances = EngineAllowances(tuple(allow_argument or ()), tuple(allow_environment or ()))
    rendering = render(manifest, part or _only_part(manifest), nodes=nodes, allowances=allowances)
    write(rendering, output, lambda: _lines(rendering))


def _only_part(manifest: ModelManifest) -> str:
    known = [spec.name for spec in manifest.spec.hosted_parts if spec.engine == "vllm"]
    if len(known) != 1:
        what = "several run on vLLM" if known else f"none of {manifest.name} runs on vLLM"
        msg = f"--part: {what}; allowed: {', '.join(known) or 'none'}"
        raise InvalidInput(msg, field="part", allowed=known)
    return known[0]


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


def _lines(rendering: ReplicaRendering) -> Iterator[str]:
    yield (
        f"# {rendering.model}.{rendering.part}: one replica on {rendering.devices} devices of "
        f"{len(rendering.hosts)} host(s)"
    )
    yield f"# {rendering.note}"
    for host in rendering.hosts:
        yield f"# {host.host}, devices {', '.join(map(str, host.devices))}"
        yield " \\\n  ".join(("env", *_assignments(host.environment), *_words(host.command)))


def _assignments(environment: Mapping[str, str]) -> Iterator[str]:
    yield from (f"{name}={shlex.quote(value)}" for name, value in sorted(environment.items()))


def _words(command: Sequence[str]) -> Iterator[str]:
    """Yield an option and its value per line."""
    line = ""
    for word in map(shlex.quote, command):
        if word.startswith("--") and line:
            yield line
            line = word
        else:
            line = f"{line} {word}".strip()
    yield line
