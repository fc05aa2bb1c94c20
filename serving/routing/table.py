"""What a router follows: the table file made ready for requests, and the task that picks up a new one."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from pydantic import ValidationError

from ipnext.errors import NotFound, Unavailable
from ipnext.model.deployment import DRAIN_SECONDS, STREAM_DRAIN_SECONDS, RoutedModel, RouterTable, ServedGeneration
from ipnext.model.kv_transfer import Handoff
from ipnext.model.predictions import PredictionAccess
from ipnext.model.registry import TensorSpec
from ipnext.model.routing import RoutingPolicy
from ipnext.model.wire import decode
from serving.graph import GraphPlan, before_last, plan_graph
from serving.protocol.v2 import snapshots_text
from serving.routing.file_watch import notices
from serving.routing.sync_policy import CandidateTiers, Version, candidates_for


@dataclass(frozen=True, slots=True, eq=False)
class GenerationRoute:
    """All that a request on one generation needs."""

    model: str
    generation: int
    plan: GraphPlan
    snapshots: Mapping[str, int]
    candidates: Mapping[str, CandidateTiers]
    """Part -> the hosts that may answer for this generation by the sync policy."""
    only_part: str | None
    """As of the plan."""
    executing_part: str | None
    """The part whose host can walk the graph: the one that answers last. None where the router must: parts are not locked."""
    missing: tuple[str, ...]
    """Parts of the graph that no host may answer for."""
    whole: bool
    """Whether all parts have hosts with the snapshots that the policy wishes."""
    routed: RoutedModel
    """What the route was made of: the model with this generation only."""
    generator: str | None = None
    """The part whose engine answers OpenAI requests: of those that serve by themselves, the one that answers last."""
    routing: RoutingPolicy = "prefix"
    """How one of its engines is picked."""
    handoff: Handoff | None = None
    """Where another part reads the prompts for it."""
    prefill_routing: RoutingPolicy | None = None
    """How one of that part's engines is picked."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """Adapter part -> its name in the generator's engines."""
    engines: frozenset[str] = frozenset()
    """Parts whose engines serve by themselves, the generator among them."""
    choices: frozenset[str] = frozenset()
    """Those of these parts that have several engines of which one is picked."""
    proof: str = ""
    """The snapshots as headers name them."""
    answers_as: Mapping[str, str] = field(default_factory=dict)
    """URL of an engine -> what it writes into its answers as `model`, if that is known."""
    before: GraphPlan | None = None
    """The nodes before the generator, where its prompt is made of what they give; None: the request goes to it as it came."""

    def snapshots_text(self, used: Mapping[str, int]) -> str:
        """What answered, as headers name it: the generation's own snapshots, but for `used` (part -> snapshot)."""
        if all(self.snapshots.get(part) == number for part, number in used.items()):
            return self.proof
        return snapshots_text({**self.snapshots, **used})

    @property
    def locked(self) -> bool:
        """Whether nothing but the generation's own snapshots may answer."""
        return self.routed.served[0].sync.policy == "locked"

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """What an OpenAI request brings for these nodes beside its prompt."""
        return self.routed.served[0].inputs

    @property
    def urls(self) -> frozenset[str]:
        """All hosts that may answer."""
        return frozenset(candidate.url for tiers in self.candidates.values() for tier in tiers for candidate in tier)


@dataclass(frozen=True, slots=True, eq=False)
class ModelRoutes:
    """The generations of one model."""

    model: str
    generations: Mapping[int, GenerationRoute]
    """Ascending."""
    swap: bool = False
    """Whether its processes go over from one generation to another."""
    coming: tuple[int, ...] = ()
    """Generations that some go over to right now."""
    drain_seconds: float = DRAIN_SECONDS
    """How long its requests under way may go on when what answers them leaves, or the router is to end."""
    swap_wait_seconds: float = STREAM_DRAIN_SECONDS
    """How long a request waits at most for a process that goes over."""
    access: PredictionAccess = "open"
    """As of the route table; the access list wins if it has the model."""

    @property
    def engine_urls(self) -> frozenset[str]:
        """Its engines that serve by themselves."""
        found = (route.candidates[part] for route in self.generations.values() for part in route.engines)
        return frozenset(candidate.url for tiers in found for tier in tiers for candidate in tier)

    @property
    def engine_choices(self) -> frozenset[str]:
        """Those of them that a request may have a choice between."""
        found = (route.candidates[part] for route in self.generations.values() for part in route.choices)
        return frozenset(candidate.url for tiers in found for tier in tiers if len(tier) > 1 for candidate in tier)

    def choose(self, pin: str | None) -> GenerationRoute:
        """The pinned generation, else the newest that has hosts for all parts with the snapshots that its policy wishes.

        Where there is none of that kind, the newest whose policy lets other snapshots stand in. NotFound names the served generations where the pin is not one; Unavailable where hosts are missing.
        """
        route = self.pinned(pin) if pin is not None else self._newest()
        if route.missing:
            msg = f"generation {route.generation} of {self.model} has no host ready for {', '.join(route.missing)}"
            raise Unavailable(msg)
        return route

    def pinned(self, pin: str) -> GenerationRoute:
        """The generation of a number in decimal; NotFound names those that are served."""
        route = self.generations.get(int(pin)) if pin.isascii() and pin.isdigit() and len(pin) <= 18 else None
        if route is None:
            served = ", ".join(map(str, self.generations)) or "none"
            msg = f"model {self.model} does not serve generation {pin[:40]!r}; served: {served}"
            raise NotFound(msg)
        return route

    def _newest(self) -> GenerationRoute:
        if not self.generations:
            msg = f"model {self.model} serves no generation yet; try again"
            raise Unavailable(msg)
        routes = tuple(self.generations.values())
        if routes[-1].whole:
            return routes[-1]
        whole = (route for route in reversed(routes) if route.whole)
        return next(whole, next((route for route in reversed(routes) if not route.missing), routes[-1]))


@dataclass(frozen=True, slots=True, eq=False)
class Routes:
    """One revision of the table. Never changed: a request keeps the one it began with."""

    revision: int
    models: Mapping[str, ModelRoutes]

    @property
    def all(self) -> tuple[GenerationRoute, ...]:
        """All generations of all models."""
        return tuple(route for model in self.models.values() for route in model.generations.values())

    @property
    def urls(self) -> frozenset[str]:
        """All hosts of all models."""
        return frozenset(url for route in self.all for url in route.urls)

    @property
    def engine_urls(self) -> Mapping[str, float]:
        """All engines that serve by themselves -> how long what they have under way may go on once they are here no more."""
        return {url: model.drain_seconds for model in self.models.values() for url in model.engine_urls}

    @property
    def engine_choices(self) -> frozenset[str]:
        """All engines whose load decides which one of them answers a request."""
        return frozenset(url for model in self.models.values() for url in model.engine_choices)

    def model(self, name: str) -> ModelRoutes:
        """The routes of a model; NotFound where it is unknown here."""
        routes = self.models.get(name)
        if routes is None:
            msg = f"model {name[:80]!r} is not served here; served: {', '.join(list(self.models)[:5]) or 'none'}"
            raise NotFound(msg)
        return routes


def compile_routes(table: RouterTable) -> Routes:
    """Make a table ready for requests."""
    return Routes(table.revision, {model.model: _model_routes(model) for model in table.models})


def _model_routes(model: RoutedModel) -> ModelRoutes:
    served = sorted(model.served, key=lambda one: one.generation)
    routes = {one.generation: generation_route(model, one) for one in served}
    return ModelRoutes(
        model.model, routes, model.swap, model.coming, model.drain_seconds, model.swap_wait_seconds, model.access
    )


def generation_route(model: RoutedModel, served: ServedGeneration) -> GenerationRoute:
    """The route of one generation of a model."""
    plan = plan_graph(served.graph)
    usable = [served] if served.sync.policy == "locked" else model.served
    found = {part: _offers(model, served, part, usable) for part in plan.parts}
    handoff = served.handoff
    last = next((node.part for node in reversed(plan.nodes) if node.part in served.engines), None)
    generator = handoff.decode if handoff else last
    # The engine that answers can do without the one that reads its prompts.
    needed = {part: tiers for part, tiers in found.items() if handoff is None or part != handoff.prefill}
    engines = plan.parts & served.engines.keys()
    return GenerationRoute(
        model=model.model,
        generation=served.generation,
        plan=plan,
        snapshots=served.snapshots,
        candidates=found,
        only_part=plan.only_part if plan.outputs else None,
        executing_part=plan.nodes[-1].part if served.sync.policy == "locked" else None,
        missing=tuple(sorted(part for part, tiers in needed.items() if not any(tiers))),
        whole=all(tiers[0] for tiers in found.values()),
        routed=_only(model, served),
        generator=generator,
        routing=served.routing.get(generator or "", "least-loaded" if handoff else "prefix"),
        handoff=handoff,
        prefill_routing=served.routing.get(handoff.prefill, "prefix") if handoff else None,
        adapters={part: adapter.name for part, adapter in served.adapters.items() if adapter.base == generator},
        engines=engines,
        choices=frozenset(part for part in engines if any(len(tier) > 1 for tier in found[part])),
        proof=snapshots_text(served.snapshots),
        answers_as={one.url: one.answers_as for one in model.endpoints if one.answers_as is not None},
        before=before_last(plan) if plan.nodes[-1].prompt is not None else None,
    )


def _only(model: RoutedModel, served: ServedGeneration) -> RoutedModel:
    endpoints = tuple(
        endpoint.model_copy(update={"generations": (served.generation,)})
        for endpoint in model.endpoints
        if served.generation in endpoint.generations
    )
    return model.model_copy(update={"served": (served,), "endpoints": endpoints})


def _offers(
    model: RoutedModel, served: ServedGeneration, part: str, usable: Iterable[ServedGeneration]
) -> CandidateTiers:
    versions = {one.generation: _version(one, part) for one in usable if part in one.snapshots}
    held: dict[str, list[Version]] = {}
    for endpoint in model.endpoints:
        if endpoint.part == part:
            found = (versions[number] for number in endpoint.generations if number in versions)
            held.setdefault(endpoint.url, []).extend(found)
    return candidates_for(served.sync, versions[served.generation], held) if served.generation in versions else ((),)


def _version(served: ServedGeneration, part: str) -> Version:
    return Version(served.generation, served.snapshots[part], served.facts.get(part))


class TableFollower:
    """Holds the routes of the file's last good content."""

    def __init__(self, path: Path, *, region: str, on_change: Callable[[Routes], None] = lambda _: None) -> None:
        self._path = path
        self._on_change = on_change
        self.beside: tuple[Callable[[], None], ...] = ()
        """Called at each look, before the table's own file: followers of files that lie beside it."""
        self._region = region
        self._seen: tuple[int, int, int] | None = None
        self.routes = Routes(0, {})
        self.found = False
        """Whether a good table was ever read."""
        self._next: asyncio.Future[None] | None = None

    async def follow(self) -> None:
        """Take each new file over as it comes, for ever."""
        async for _ in notices(self._path.parent):
            self.look()

    async def changed(self) -> None:
        """Return once another table is in use."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._next)

    def look(self) -> None:
        """Take the file over if it is a new one. A bad one is logged and the former routes stay."""
        for look in self.beside:
            look()
        try:
            stat = self._path.stat()
        except OSError:
            return
        seen = (stat.st_mtime_ns, stat.st_ino, stat.st_size)
        if seen != self._seen:
            self._seen = seen
            self._take_over()

    def _take_over(self) -> None:
        log = structlog.get_logger()
        try:
            table = decode(RouterTable, self._path.read_bytes())
        except (OSError, ValidationError) as error:
            log.warning("the table cannot be read, the former one stays", reason=str(error)[:500])
            return
        if table.region != self._region:
            log.warning("the table is of another region, the former one stays", region=table.region)
            return
        self.routes = compile_routes(table)
        self.found = True
        self._on_change(self.routes)
        if self._next is not None:
            self._next.set_result(None)
            self._next = None
        log.info("table in use", revision=table.revision, models=len(table.models))
