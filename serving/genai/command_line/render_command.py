"""The target `vllm` of `ipnext render`: what the hosts of a part on vLLM would run."""

import shlex
from collections.abc import Iterator, Mapping, Sequence

from ipnext.cli.commands.rendering import Rendering, RenderRequest
from ipnext.errors import InvalidInput
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.settings.engine_allowances import EngineAllowances
from serving.genai.command_line.render import ReplicaRendering, render


def render_vllm(request: RenderRequest) -> Rendering:
    """Return commands and environment of each host of one replica. InvalidInput."""
    allowances = EngineAllowances(request.allowed_arguments, request.allowed_environment)
    part = request.part or _only_part(request.manifest)
    rendering = render(request.manifest, part, nodes=request.nodes, allowances=allowances)
    return Rendering(rendering, _lines(rendering))


def _only_part(manifest: ModelManifest) -> str:
    known = [spec.name for spec in manifest.spec.hosted_parts if spec.engine == "vllm"]
    if len(known) != 1:
        what = "several run on vLLM" if known else f"none of {manifest.name} runs on vLLM"
        msg = f"--part: {what}; allowed: {', '.join(known) or 'none'}"
        raise InvalidInput(msg, field="part", allowed=known)
    return known[0]


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
