"""`ipnext profile`: measure one replica of a generative part, and keep what was seen with its snapshot."""

import asyncio
import os
import platform
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ipnext.cli.command import Command, ModelName
from ipnext.cli.output import Form, Output, number, say, write
from ipnext.cli.plugin_group import INSTALL
from ipnext.cli.session import client_of
from ipnext.cli.tables.profiles import ProfileAnswer, answer_tables
from ipnext.client import Client
from ipnext.errors import EXIT_FAILURE, Forbidden, InvalidInput, NotFound, Unavailable
from ipnext.model.api.resources import ModelView
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.manifest.part import PartSpec
from ipnext.model.registry.profile import (
    MOST_STEPS,
    Conditions,
    LatencyTarget,
    Profile,
    at_target,
)
from ipnext.process.machine_details import CUT

if TYPE_CHECKING:
    from ipnext.profiling.measuring import MeasuredSteps, RequestLoad

BUSY = 0.8
"""CPU seconds a second from which the figures are rather the measuring process's than the engine's."""


@dataclass(frozen=True)
class Subject:
    """The replica that is measured, and what it is a replica of."""

    part: str
    hardware: str
    snapshot: int
    url: str
    target: LatencyTarget
    settings: Mapping[str, Any]
    embedding: bool
    replica: str = ""
    region: str = ""


def profile(  # noqa: PLR0913, PLR0917 - each is an option of the command line
    context: typer.Context,
    model: ModelName,
    part: Annotated[str | None, typer.Option(help="The part, if several run on vLLM.", show_default=False)] = None,
    region: Annotated[str | None, typer.Option(help="A replica of this region.", show_default=False)] = None,
    hardware: Annotated[str | None, typer.Option(help="A replica on this hardware kind.", show_default=False)] = None,
    ttft_ms: Annotated[
        float | None, typer.Option(min=0.001, help="Latency target: time to the first token, p99.", show_default=False)
    ] = None,
    itl_ms: Annotated[
        float | None, typer.Option(min=0.001, help="Latency target: from token to token, p99.", show_default=False)
    ] = None,
    prompt_tokens: Annotated[int, typer.Option(min=1, max=1_000_000, help="Tokens of each prompt.")] = 256,
    output_tokens: Annotated[int, typer.Option(min=1, max=1_000_000, help="Tokens of each answer.")] = 64,
    concurrency: Annotated[str, typer.Option(help="Numbers of readers, one step for each.")] = "1,2,4,8,16",
    seconds: Annotated[float, typer.Option(min=0, help="Of each step, warm-up left out.")] = 10.0,
    url: Annotated[
        str | None, typer.Option(help="Measure this OpenAI server instead of a replica.", show_default=False)
    ] = None,
    snapshot: Annotated[
        int | None, typer.Option(min=1, help="With --url: the snapshot that it serves.", show_default=False)
    ] = None,
    machine: Annotated[str | None, typer.Option(help="Words on the engine's machine.", show_default=False)] = None,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Measure and show; keep nothing.")] = False,
    output: Output = Form.TABLE,
) -> None:
    """Measure one replica at rising concurrency, and keep the profile. Exit status 1 if the target is not met."""
    steps = concurrency_of(concurrency)
    client = client_of(context)
    view = None if dry_run and url else client.model(model)
    if view is None:
        target = LatencyTarget()
        subject = Subject(part or "part", hardware or "unknown", snapshot or 1, url or "", target, {}, embedding=False)
    else:
        subject = subject_of(client, view, part=part, hardware=hardware, region=region, url=url, snapshot=snapshot)
    target = LatencyTarget(
        ttft_ms=subject.target.ttft_ms if ttft_ms is None else ttft_ms,
        itl_ms=subject.target.itl_ms if itl_ms is None else itl_ms,
    )
    tokens = 0 if subject.embedding else output_tokens
    asked = {"prompt_tokens": prompt_tokens, "output_tokens": tokens, "concurrency": steps, "seconds": seconds}
    found = _measure_profile(model, subject, asked, machine)
    answer = ProfileAnswer(profile=found, target=target, found=at_target(found.steps, target))
    if not dry_run:
        stored = client.put_profile(model, subject.part, subject.snapshot, found)
        answer = answer.model_copy(update={"stored": stored})
    _warn(found)
    write(answer, output, lambda: answer_tables(answer))
    if not answer.found.met:
        raise typer.Exit(EXIT_FAILURE)


def concurrency_of(text: str) -> tuple[int, ...]:
    """`1,2,4` as numbers that rise. InvalidInput."""
    items = [item.strip() for item in text.split(",")]
    numbers = [int(item) for item in items if item.isdecimal() and 0 < int(item) <= 100_000]
    if len(numbers) != len(items) or numbers != sorted(set(numbers)) or len(numbers) > MOST_STEPS:
        msg = f"--concurrency: {text!r:.80}; allowed: at most {MOST_STEPS} whole numbers that rise, such as 1,2,4,8"
        raise InvalidInput(msg, field="concurrency", value=text)
    return tuple(numbers)


def subject_of(  # noqa: PLR0913 - what a person may choose by
    client: Client,
    view: ModelView,
    *,
    part: str | None,
    hardware: str | None,
    region: str | None,
    url: str | None,
    snapshot: int | None,
) -> Subject:
    """Return the subject of the measurement: one ready replica of a part, or the server at `url` in its place.

    Raises InvalidInput, NotFound.
    """
    manifest = view.manifest
    spec = _part(manifest, part)
    serving = view.status.serving_generation
    if snapshot is not None and url is None:
        msg = f"--snapshot: {snapshot} goes with --url; a replica says itself which snapshot it serves"
        raise InvalidInput(msg, field="snapshot", value=snapshot)
    held = snapshot or _snapshot(client, view, spec.name)
    runner = spec.settings.get("runner")
    known: dict[str, Any] = {
        "part": spec.name,
        "snapshot": held,
        "target": spec.latency_target or LatencyTarget(),
        "settings": spec.settings,
        "embedding": runner == "pooling" or (runner is None and manifest.spec.task == "embedding"),
    }
    if url is not None:
        return Subject(**known, hardware=_only("hardware", (o.kind for o in spec.hardware), hardware), url=url)
    replicas = [r for r in view.status.replicas if r.key.part == spec.name and serving in r.engines]
    replicas = [r for r in replicas if serving in r.ready and region in {None, r.key.region}]
    kind = _only("hardware", (r.key.hardware for r in replicas), hardware) if replicas else None
    chosen = next((r for r in sorted(replicas, key=lambda r: r.id) if r.key.hardware == kind), None)
    if chosen is None or serving is None:
        where = "".join(f" {word} {name}" for word, name in (("in", region), ("on", hardware)) if name)
        msg = (
            f"no replica of part {spec.name!r} of {manifest.name!r}{where} is ready and has an engine of its "
            "own; --url measures any OpenAI server"
        )
        raise NotFound(msg)
    if CUT in chosen.engines[serving]:
        msg = (
            f"engines: where that of {chosen.id} answers is shown to operators and administrators of all "
            "owners only; measure as one of "
            "them on the engine's machine, or give --url"
        )
        raise Forbidden(msg)
    at = chosen.key
    return Subject(**known, hardware=at.hardware, url=chosen.engines[serving], replica=chosen.id, region=at.region)


def _part(manifest: ModelManifest, name: str | None) -> PartSpec:
    parts = {part.name: part for part in manifest.spec.hosted_parts if part.engine == "vllm"}
    if not parts:
        msg = f"model {manifest.name!r} has no part of engine vllm: only these are measured"
        raise InvalidInput(msg, field="model", value=manifest.name)
    return parts[_only("part", parts, name)]


def _only(option: str, allowed: Iterable[str], chosen: str | None) -> str:
    """Return the chosen one, or the only one there is."""
    names = tuple(sorted(set(allowed)))
    if chosen is None and len(names) == 1:
        return names[0]
    if chosen not in names:
        given = "several are there" if chosen is None else repr(chosen)
        msg = f"--{option}: {given}; allowed: {', '.join(names)}"
        raise InvalidInput(msg, field=option, value=chosen, allowed=names)
    return chosen


def _snapshot(client: Client, view: ModelView, part: str) -> int:
    """Return the snapshot of the generation that serves, else the newest."""
    serving, model = view.status.serving_generation, view.manifest.name
    for generation in client.generations(model):
        if generation.number == serving and part in generation.snapshots:
            return generation.snapshots[part]
    numbers = [found.number for found in client.snapshots(model, part=part, limit=1)]
    if not numbers:
        msg = f"model {model!r} has no snapshot of part {part!r} yet: publish one first, or measure with --dry-run"
        raise NotFound(msg)
    return max(numbers)


def _measure_profile(model: str, subject: Subject, asked: Mapping[str, Any], machine: str | None) -> Profile:
    try:
        from ipnext.profiling.engine import ProfiledEngine  # noqa: PLC0415 - aiohttp is no dependency of a client
        from ipnext.profiling.measuring import RequestLoad, measure  # noqa: PLC0415 - the same
    except ModuleNotFoundError as error:
        msg = f"`ipnext profile` needs {error.name}; install it with: {INSTALL}"
        raise Unavailable(msg) from error
    load = RequestLoad(**asked)

    async def run() -> "tuple[MeasuredSteps, str]":
        async with ProfiledEngine(subject.url) as engine:
            await engine.choose_model(model)
            return await measure(engine, load, say=say), await engine.version()

    started = datetime.now(UTC)
    found, version = asyncio.run(run())
    return Profile(
        hardware=subject.hardware,
        steps=found.steps,
        conditions=_conditions(subject, load, found, version, machine),
        measured_at=started,
    )


def _conditions(
    subject: Subject, load: "RequestLoad", found: "MeasuredSteps", version: str, machine: str | None
) -> Conditions:
    return Conditions(
        engine_version=version,
        settings=subject.settings,
        prompt_tokens=found.prompt_tokens,
        output_tokens=load.output_tokens,
        replica=subject.replica,
        region=subject.region,
        machine=machine or f"measured from {platform.system()} {platform.machine()}, {os.cpu_count()} CPUs",
        url=subject.url,
    )


def _warn(found: Profile) -> None:
    others = max(step.others_running for step in found.steps)
    if others:
        say(
            f"warning: the engine had up to {number(others)} requests of others at the same time: "
            "the figures are too low"
        )
    busy = max(step.client_busy for step in found.steps)
    if busy > BUSY:
        say(
            f"warning: the measuring process was busy for {busy:.0%} of a CPU: "
            "the engine may do more than it could take"
        )


COMMANDS: tuple[Command, ...] = (Command("profile", "Measure a replica of a generative part.", profile),)
