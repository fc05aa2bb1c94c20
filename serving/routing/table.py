"""The route table, prepared for requests, and the follower that loads each new version of its file."""

import asyncio
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import structlog
from pydantic import ValidationError

from ipnext.errors import NotFound, Unavailable
from ipnext.model.access.predictions import PredictionAccess
from ipnext.model.deployment.deployment import DRAIN_SECONDS, STREAM_DRAIN_SECONDS
from ipnext.model.deployment.route_table import Shadow
from ipnext.model.deployment.router_table import GenerationShares, RoutedModel, RouterTable
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.registry.registry import TensorSpec
from ipnext.model.settings.kv_transfer import Handoff
from ipnext.model.settings.routing import RoutingPolicy
from ipnext.model.wire import decode
from serving.graph import GraphPlan, before_last, plan_graph
from serving.protocol.v2 import snapshots_text
from serving.routing.file_watch import notices
from serving.routing.sync_policy import CandidateTiers, Version, candidates_for


@dataclass(frozen=True, slots=True, eq=False)
class GenerationRoute:
    """The routing data of one generation, as requests need it."""

    model: str
    generation: int
    plan: GraphPlan
    snapshots: Mapping[str, int]
    own: frozenset[tuple[str, int]]
    """(part, number) of the generation's snapshots, on whatever hardware."""
    candidates: Mapping[str, CandidateTiers]
    """Part -> the hosts that may serve this generation by the sync policy."""
    only_part: str | None
    """As in the plan."""
    executing_part: str | None
    """The part whose host can execute the graph: that of the last node. None if the router must: parts are not
    locked, or a host is on another machine, which other hosts have no certificate for."""
    missing: tuple[str, ...]
    """Parts of the graph without a candidate host."""
    whole: bool
    """Whether all parts have hosts with the snapshots that the policy prefers."""
    routed: RoutedModel
    """Source of the route: the model with this generation only."""
    generator: str | None = None
    """The part whose engine answers OpenAI requests: the last node whose engine serves by itself."""
    routing: RoutingPolicy = "prefix"
    """Policy that picks one of its engines."""
    handoff: Handoff | None = None
    """Set if another part runs the prefill for it."""
    prefill_routing: RoutingPolicy | None = None
    """Policy that picks one of that part's engines."""
    adapters: Mapping[str, str] = field(default_factory=dict)
    """Adapter part -> its name in the generator's engines."""
    engines: frozenset[str] = frozenset()
    """Parts whose engines serve by themselves, including the generator."""
    choices: frozenset[str] = frozenset()
    """Those of `engines` that have several engines to choose from."""
    proof: str = ""
    """The snapshots in the form of the header."""
    answers_as: Mapping[str, str] = field(default_factory=dict)
    """URL of an engine -> the `model` that it writes into its answers, if known."""
    before: GraphPlan | None = None
    """Graph nodes that run before the generator and build its prompt. None if the request is forwarded unchanged."""

    def snapshots_text(self, used: Mapping[str, int]) -> str:
        """Return the snapshots that answered, in the form of the header.

        The generation's, with those of `used` (part -> snapshot).
        """
        return snapshots_text({**self.snapshots, **used}) if self.differs(used) else self.proof

    def differs(self, used: Mapping[str, int]) -> bool:
        """Return whether other snapshots answered than `snapshots` has: a derivative, or one that stood in."""
        return any(self.snapshots.get(part) != number for part, number in used.items())

    def is_substituted(self, used: Mapping[str, int]) -> bool:
        """Return whether snapshots answered that are not the generation's on any hardware."""
        return self.differs(used) and not all(pair in self.own for pair in used.items())

    def is_proved(self, snapshots: object) -> bool:
        """Return whether a host names one of the generation's own snapshots for each of its parts."""
        if snapshots == self.snapshots:
            return True
        return (
            isinstance(snapshots, dict)
            and snapshots.keys() == self.snapshots.keys()
            and all(type(number) is int and (part, number) in self.own for part, number in snapshots.items())
        )

    def has_snapshots_of(self, other: "GenerationRoute") -> bool:
        """Return whether both have the same snapshots on each hardware kind."""
        return self.snapshots == other.snapshots and self.by_hardware == other.by_hardware

    @property
    def by_hardware(self) -> Mapping[str, Mapping[str, int]]:
        """Hardware kind -> part -> number, of the snapshots that are others there."""
        return self.routed.served[0].by_hardware

    @property
    def is_locked(self) -> bool:
        """Whether only the generation's own snapshots may answer."""
        return self.routed.served[0].sync.policy == "locked"

    @property
    def inputs(self) -> tuple[TensorSpec, ...]:
        """Tensors that an OpenAI request supplies for the nodes before the generator, in addition to its prompt."""
        return self.routed.served[0].inputs

    @property
    def urls(self) -> frozenset[str]:
        """All candidate hosts."""
        return frozenset(candidate.url for tiers in self.candidates.values() for tier in tiers for candidate in tier)


@dataclass(frozen=True, slots=True, eq=False)
class ShadowRoute:
    """A generation that answers no client, and the requests that are mirrored to it."""

    shadow: Shadow
    route: GenerationRoute

    @property
    def identity(self) -> tuple[int, Mapping[str, int], Mapping[str, Mapping[str, int]], int]:
        """What makes two shadows of a model the same: generation, snapshots and seed."""
        return self.shadow.generation, self.route.snapshots, self.route.by_hardware, self.shadow.seed


@dataclass(frozen=True, slots=True, eq=False)
class ModelRoutes:
    """The generations of one model."""

    model: str
    generations: Mapping[int, GenerationRoute]
    """By number, ascending."""
    swap: bool = False
    """Whether its processes hot swap from one generation to another."""
    coming: tuple[int, ...] = ()
    """Generations that a hot swap is in progress to."""
    drain_seconds: float = DRAIN_SECONDS
    """How long its requests in flight may continue if their engine is removed, or the router drains."""
    swap_wait_seconds: float = STREAM_DRAIN_SECONDS
    """Longest wait of a request for a process in a hot swap."""
    access: PredictionAccess = "open"
    """Access by the route table; if the access list has the model, it takes precedence."""
    routed: RoutedModel | None = None
    """Source of the routes."""
    shadow: ShadowRoute | None = None
    """Not among `generations`, so that no request finds it."""

    @property
    def engine_urls(self) -> frozenset[str]:
        """URLs of its engines that serve by themselves."""
        found = (route.candidates[part] for route in self.generations.values() for part in route.engines)
        return frozenset(candidate.url for tiers in found for tier in tiers for candidate in tier)

    @property
    def engine_choices(self) -> frozenset[str]:
        """Those of them that requests are balanced over."""
        found = (route.candidates[part] for route in self.generations.values() for part in route.choices)
        return frozenset(candidate.url for tiers in found for tier in tiers if len(tier) > 1 for candidate in tier)

    def choose(self, pin: str | None) -> GenerationRoute:
        """Return the pinned generation, else the newest one that can answer.

        It has hosts for all parts with the snapshots that its policy prefers.

        If there is none, the newest whose policy accepts other snapshots. NotFound names the served generations if the
        pin is not among them; Unavailable if hosts are missing.
        """
        route = self.find_pinned(pin) if pin is not None else self._newest()
        if route.missing:
            msg = f"generation {route.generation} of {self.model} has no host ready for {', '.join(route.missing)}"
            raise Unavailable(msg)
        return route

    def find_pinned(self, pin: str) -> GenerationRoute:
        """Return the generation with this decimal number; NotFound names those that are served."""
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
    """One revision of the table. Immutable: a request keeps the one it began with."""

    revision: int
    models: Mapping[str, ModelRoutes]
    choices: Mapping[str, GenerationShares] = field(default_factory=dict)
    """Model -> shares by which the generation of its OpenAI requests is chosen, also if only other regions serve it."""
    egress: str = ""
    """URL of the gateway's socket for requests that other regions answer."""

    @property
    def accesses(self) -> Mapping[str, PredictionAccess]:
        """Access of each model by the table."""
        elsewhere = {name: one.access for name, one in self.choices.items()}
        return elsewhere | {name: one.access for name, one in self.models.items()}

    def knows(self, model: str) -> bool:
        """Return whether this region answers for the model, or knows which one does."""
        return model in self.models or model in self.choices

    @property
    def all(self) -> tuple[GenerationRoute, ...]:
        """All generations of all models."""
        return tuple(route for model in self.models.values() for route in model.generations.values())

    @property
    def urls(self) -> frozenset[str]:
        """All hosts of all models."""
        return frozenset(url for route in self.all for url in route.urls)

    @property
    def shadows(self) -> Mapping[str, ShadowRoute]:
        """Model -> its shadow, of models that have one."""
        return {name: model.shadow for name, model in self.models.items() if model.shadow is not None}

    @property
    def engine_urls(self) -> Mapping[str, float]:
        """URL of each engine that serves by itself -> how long requests in flight may continue after its removal."""
        return {url: model.drain_seconds for model in self.models.values() for url in model.engine_urls}

    @property
    def engine_choices(self) -> frozenset[str]:
        """URLs of all engines that are chosen by load."""
        return frozenset(url for model in self.models.values() for url in model.engine_choices)

    def model(self, name: str) -> ModelRoutes:
        """Return the routes of a model; NotFound if it is unknown here."""
        routes = self.models.get(name)
        if routes is None:
            msg = f"model {name[:80]!r} is not served here"  # names of others may be of models that need a credential
            raise NotFound(msg)
        return routes


def compile_routes(table: RouterTable, former: Routes | None = None) -> Routes:
    """Prepare a table for requests. Models that have not changed keep their routes of the `former` table."""
    known = former.models if former is not None else {}
    return Routes(
        table.revision,
        {model.model: _reuse_routes(known.get(model.model), model) for model in table.models},
        {choice.model: choice for choice in table.choices},
        table.egress,
    )


def _reuse_routes(former: ModelRoutes | None, model: RoutedModel) -> ModelRoutes:
    return former if former is not None and former.routed == model else _model_routes(model)


def _model_routes(model: RoutedModel) -> ModelRoutes:
    served = sorted(model.served, key=lambda one: one.generation)
    routes = {one.generation: generation_route(model, one) for one in served}
    return ModelRoutes(
        model.model,
        routes,
        model.swap,
        model.coming,
        model.drain_seconds,
        model.swap_wait_seconds,
        model.access,
        routed=model,
        shadow=shadow_route(model),
    )


def shadow_route(model: RoutedModel) -> ShadowRoute | None:
    """Build the route of a model's shadow, to hosts with its own snapshots only; None if the model has none."""
    if model.shadow is None:
        return None
    alone = model.model_copy(update={"served": (model.shadow.served,), "shadow": None})
    return ShadowRoute(model.shadow, generation_route(alone, model.shadow.served))


def generation_route(model: RoutedModel, served: ServedGeneration) -> GenerationRoute:
    """Build the route of one generation of a model."""
    plan = plan_graph(served.graph)
    usable = [served] if served.sync.policy == "locked" else model.served
    found = {part: _offers(model, served, part, usable) for part in plan.parts}
    handoff = served.handoff
    last = next((node.part for node in reversed(plan.nodes) if node.part in served.engines), None)
    generator = handoff.decode if handoff else last
    # The decode engine can answer without the prefill engine.
    needed = {part: tiers for part, tiers in found.items() if handoff is None or part != handoff.prefill}
    engines = plan.parts & served.engines.keys()
    return GenerationRoute(
        model=model.model,
        generation=served.generation,
        plan=plan,
        snapshots=served.snapshots,
        own=frozenset(served.named),
        candidates=found,
        only_part=plan.only_part if plan.outputs else None,
        executing_part=plan.nodes[-1].part if _is_executed_by_hosts(served, found) else None,
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


def _is_executed_by_hosts(served: ServedGeneration, found: Mapping[str, CandidateTiers]) -> bool:
    remote = any(one.url.startswith("https://") for tiers in found.values() for tier in tiers for one in tier)
    return served.sync.policy == "locked" and not remote


def _only(model: RoutedModel, served: ServedGeneration) -> RoutedModel:
    endpoints = tuple(
        endpoint.model_copy(update={"generations": (served.generation,)})
        for endpoint in model.endpoints
        if served.generation in endpoint.generations
    )
    return model.model_copy(update={"served": (served,), "endpoints": endpoints, "shadow": None})


def _offers(
    model: RoutedModel, served: ServedGeneration, part: str, usable: Iterable[ServedGeneration]
) -> CandidateTiers:
    having = {one.generation: one for one in usable if part in one.snapshots}
    held: dict[str, list[Version]] = {}
    for endpoint in model.endpoints:
        if endpoint.part == part:
            found = (_version(having[g], part, endpoint.hardware) for g in endpoint.generations if g in having)
            held.setdefault(endpoint.url, []).extend(found)
    return candidates_for(served.sync, _version(served, part), held) if served.generation in having else ((),)


def _version(served: ServedGeneration, part: str, hardware: str = "") -> Version:
    """Return the snapshot with which hosts of a hardware kind answer: all of a part count as the published one."""
    number, facts = served.snapshot_on(part, hardware), served.facts.get(part)
    if facts is not None and number != served.snapshots[part]:
        facts = facts.model_copy(update={"published": facts.published or served.snapshots[part]})
    return Version(served.generation, number, facts)


class TableFollower:
    """Holds the routes of the file's last valid content."""

    def __init__(self, path: Path, *, region: str, on_change: Callable[[Routes], None] = lambda _: None) -> None:
        self._path = path
        self._on_change = on_change
        self.beside: tuple[Callable[[], None], ...] = ()
        """Called at each check, before the table's own file: followers of files in the same directory."""
        self._region = region
        self._seen: tuple[int, int, int] | None = None
        self.routes = Routes(0, {})
        self.found = False
        """Whether a valid table was ever read."""
        self._next: asyncio.Future[None] | None = None

    async def follow(self) -> None:
        """Load each new version of the file. Never returns."""
        async for _ in notices(self._path.parent):
            self.look()

    async def wait_change(self) -> None:
        """Return once another table is in use."""
        if self._next is None:
            self._next = asyncio.get_running_loop().create_future()
        await asyncio.shield(self._next)

    def look(self) -> None:
        """Load the file if it has changed. If it is invalid, that is logged and the former routes stay."""
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
        self.routes = compile_routes(table, self.routes)
        self.found = True
        self._on_change(self.routes)
        if self._next is not None:
            self._next.set_result(None)
            self._next = None
        log.info("table in use", revision=table.revision, models=len(table.models))
