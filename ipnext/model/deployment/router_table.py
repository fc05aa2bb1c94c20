"""Control of a router: the table that the region's agent writes for it, and the state that it reports."""

from collections.abc import Mapping

from pydantic import Field, model_validator

from ipnext.model.access.predictions import AccessRevision, PredictionAccess
from ipnext.model.deployment.deployment import DRAIN_SECONDS, STREAM_DRAIN_SECONDS
from ipnext.model.deployment.route_table import RouteShare, Shadow, refuse_served
from ipnext.model.deployment.served_generation import ServedGeneration
from ipnext.model.deployment.traffic import GenerationTraffic
from ipnext.model.gate.shadow import ShadowComparison
from ipnext.model.value import Name, Value


class PartEndpoint(Value):
    """A process that answers for generations of a part: a host, or its engine."""

    part: Name
    url: str
    generations: tuple[int, ...]
    answers_as: str | None = None
    """The `model` that an engine writes into its answers; routers reject answers with another name. None: not
    checked."""
    hardware: str = Field(default="", exclude_if=lambda kind: not kind)
    """The hardware kind of its host; empty if its model answers with the same snapshots on all kinds."""


class RoutedModel(Value):
    """A router's data about one model."""

    model: Name
    served: tuple[ServedGeneration, ...]
    endpoints: tuple[PartEndpoint, ...] = ()
    swap: bool = False
    """Whether processes swap from one generation to another: then either may answer a request that no client has
    pinned."""
    coming: tuple[int, ...] = ()
    """Generations to which processes are swapping: a request that finds no engine may wait for them."""
    drain_seconds: float = Field(default=DRAIN_SECONDS, ge=0)
    """Longest time for requests under way after their process leaves, or after the router was asked to end."""
    swap_wait_seconds: float = Field(default=STREAM_DRAIN_SECONDS, ge=0)
    """Longest wait of a request for a swapping process."""
    access: PredictionAccess = "open"
    """As in the route table."""
    shadow: Shadow | None = None
    """As in the route table."""

    @model_validator(mode="after")
    def _shadow_is_apart(self) -> "RoutedModel":
        if self.shadow is not None:
            refuse_served(self.shadow, {one.generation for one in self.served}, "`served`")
        return self


class GenerationShares(Value):
    """The shares by which a router chooses the generation of a model's OpenAI requests.

    They come from the region's route table.
    """

    model: Name
    shares: tuple[RouteShare, ...] = ()
    """Shares with traffic to this region and to others whose gateways are known, one for each region and generation."""
    refusal: str = ""
    """Reason for which requests are refused if there are no shares."""
    access: PredictionAccess = "open"
    """As in the route table."""


class RouterTable(Value):
    """The router's input file (renamed into place by the region's agent)."""

    revision: int = Field(ge=0)
    region: Name
    models: tuple[RoutedModel, ...] = ()
    choices: tuple[GenerationShares, ...] = ()
    """Of each model that answers OpenAI requests here or in another region. Of a model without an entry the newest
    ready generation answers, or the one that the request names."""
    egress: str = ""
    """URL of the gateway's socket for requests that other regions answer."""


class RouterState(Value):
    """Answer of `GET /control/state` of a router."""

    revision: int
    """Revision of the router table in use."""
    traffic: tuple[GenerationTraffic, ...] = ()
    engines: Mapping[str, int] = Field(default_factory=dict)
    """URL of an engine with its own server, or of the gateway's egress -> its requests from this router; those without
    requests are left out."""
    draining: bool = False
    """Whether it is about to end: it accepts nothing new, and finishes the requests under way."""
    access: AccessRevision = AccessRevision(revision=0)
    """The access list that it goes by."""
    shadows: tuple[ShadowComparison, ...] = ()
    """Of each model with a shadow."""
