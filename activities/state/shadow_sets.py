"""Replica sets with and without the processes of a shadow. Pure functions.

A change that moves a model reads and compares its replica sets without them. What it applies or stores has them.
"""

from collections.abc import Iterable, Iterator, Mapping, Sequence

from ipnext.model.deployment.deployment import AssignedSnapshot, Deployment, DeploymentKey
from ipnext.model.lifecycle.shadow import ModelShadow


def without_shadow(deployments: Iterable[Deployment]) -> tuple[Deployment, ...]:
    """Return replica sets without the processes of shadows; sets of nothing else are left out."""
    return tuple(_without(found) for found in deployments if not found.shadow or found.clients_replicas)


def with_shadow(deployments: Iterable[Deployment], shadow: ModelShadow | None) -> tuple[Deployment, ...]:
    """Return all replica sets of a model: these, and the processes of its shadow on top."""
    bare = without_shadow(deployments)
    if shadow is None:
        return bare
    known = {found.key for found in bare}
    return (*(add_shadow(found, shadow) for found in bare), *(found for found in shadow.sets if found.key not in known))


def add_shadow(deployment: Deployment, shadow: ModelShadow | None) -> Deployment:
    """Return a replica set with the processes that the model's shadow has in it."""
    added = shadow_set(deployment.key, shadow)
    if added is None:
        return deployment
    holds = _merge([*_drop(deployment.holds, added.shadow), *added.holds])
    replicas = deployment.replicas + added.replicas
    return deployment.model_copy(update={"replicas": replicas, "holds": holds, "shadow": added.shadow})


def shadow_set(key: DeploymentKey, shadow: ModelShadow | None) -> Deployment | None:
    """Return the replica set of the shadow alone; None if it has no processes there."""
    return next((found for found in shadow.sets if found.key == key), None) if shadow is not None else None


def _without(deployment: Deployment) -> Deployment:
    if not deployment.shadow:
        return deployment
    holds = tuple(_drop(deployment.holds, deployment.shadow))
    return deployment.model_copy(update={"replicas": deployment.clients_replicas, "holds": holds, "shadow": {}})


def _drop(holds: Iterable[AssignedSnapshot], numbers: Mapping[int, int]) -> Iterator[AssignedSnapshot]:
    for held in holds:
        kept = tuple(number for number in held.generations if number not in numbers)
        if kept:
            yield held if kept == held.generations else held.model_copy(update={"generations": kept})


def _merge(holds: Sequence[AssignedSnapshot]) -> tuple[AssignedSnapshot, ...]:
    found: dict[tuple[str, int, int], AssignedSnapshot] = {}
    for held in holds:
        key = (held.part or "", held.snapshot, held.adapters)
        known = found.get(key, held)
        numbers = tuple(sorted({*known.generations, *held.generations}))
        found[key] = known.model_copy(update={"generations": numbers})
    return tuple(found[key] for key in sorted(found))
