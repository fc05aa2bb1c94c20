"""Filters of models in lists and on the page, and the number of ready ones."""

from collections.abc import Iterable, Sequence
from typing import Annotated, NamedTuple

from fastapi import Depends, Query

from ipnext.api.dependencies import After, WantedLabels
from ipnext.api.services.model_facts import ModelFacts, facts_of
from ipnext.api.services.region_states import States
from ipnext.api.services.status import observed_conditions
from ipnext.model.lifecycle.status import Condition, ConditionType
from ipnext.store.paging import Page
from ipnext.store.repository import Repository

MOST_MODELS = 200
"""Models of one page."""

LOOKED_AT = 200
"""Most models recorded as ready, with replicas that do not answer, that the count checks."""

NAMED = 50
"""Most unready models that the overview names."""

Owner = Annotated[str | None, Query(max_length=63, description="Only models of this owner.")]
Ready = Annotated[bool | None, Query(description="Only models that are ready, or that are not.")]
Search = Annotated[str | None, Query(max_length=63, description="Only models with this text in their name.")]
PageLimit = Annotated[int, Query(ge=1, le=MOST_MODELS, description=f"Models of the page, 1 to {MOST_MODELS}.")]


class ModelFilter(NamedTuple):
    """A client's filter of models."""

    owner: str | None = None
    ready: bool | None = None
    search: str | None = None
    after: str | None = None
    limit: int = 50
    labels: tuple[tuple[str, str], ...] = ()


def parse_filters(
    labels: WantedLabels,
    owner: Owner = None,
    ready: Ready = None,
    search: Search = None,
    after: After = None,
    limit: PageLimit = 50,
) -> ModelFilter:
    """Read the filters and the page from a request's query."""
    return ModelFilter(owner, ready, search, after, limit, labels)


WantedModels = Annotated[ModelFilter, Depends(parse_filters)]


class FleetReadiness(NamedTuple):
    """The numbers of models and of ready ones, and the first names of the others."""

    models: int
    ready: int
    not_ready: tuple[str, ...]


def is_ready(facts: ModelFacts, states: States) -> bool:
    """Return True if the newest desired state of the model serves, by the store and by the regions' reports."""
    return serves(observed_conditions(facts, states))


def serves(conditions: Iterable[Condition]) -> bool:
    """Return True if the observed conditions of a model include readiness."""
    return any(found.type is ConditionType.READY and found.status == "True" for found in conditions)


def suspects(unit: Repository, states: States) -> frozenset[str]:
    """Return models whose status may differ from the store.

    A replica or a region of theirs does not answer, or their gateways send the users of a region nowhere.
    """
    return states.troubled | unit.models_wanted_in(states.unreachable) | unit.models_unrouted()


def find_models(unit: Repository, states: States, wanted: ModelFilter) -> Page[ModelFacts]:
    """Return the facts of one page of models."""
    doubtful = suspects(unit, states) if wanted.ready is False else ()
    page = unit.model_page(
        after=wanted.after,
        limit=wanted.limit,
        owner=wanted.owner,
        ready=wanted.ready,
        search=wanted.search,
        suspects=doubtful,
        labels=dict(wanted.labels),
    )
    facts: Sequence[ModelFacts] = facts_of(unit, page.items)
    if wanted.ready is not None:
        facts = [each for each in facts if is_ready(each, states) is wanted.ready]
    return Page(tuple(facts), page.next)


def fleet_readiness(unit: Repository, states: States) -> FleetReadiness:
    """Count ready models: those recorded as ready, less those whose regions report otherwise."""
    models, ready = unit.model_counts()
    gone = find_contradicted(unit, states)
    return FleetReadiness(models, ready - len(gone), unit.unready_models(suspects=gone, limit=NAMED))


def find_contradicted(unit: Repository, states: States) -> frozenset[str]:
    """Return models recorded as ready that the regions report not to be; of the first `LOOKED_AT` suspects by name."""
    doubtful = suspects(unit, states)
    recorded = sorted(name for name, ready in unit.recorded_readiness(doubtful).items() if ready)[:LOOKED_AT]
    found = facts_of(unit, unit.models_named(recorded)) if recorded else ()
    return frozenset(each.record.name for each in found if not is_ready(each, states))
