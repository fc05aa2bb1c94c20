"""Desired state of a region that is restored: its replica sets and models, by marks that tell what has changed since.

Read by `activities.regions.recovery`, in the same number of statements for one model and for hundreds.
"""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256

from ipnext.model.deployment.deployment import DeploymentKey
from ipnext.store.repository import Repository


@dataclass(frozen=True)
class ModelMark:
    """What the route table of one model in the region is computed from."""

    revisions: tuple[tuple[str, int], ...]
    """(Region, revision) of every route table of the model."""
    sets: tuple[tuple[str, str], ...]
    """(Replica set, digest) of the model in the region."""
    settled: int | None
    """The generation that its users were sent to last."""

    def with_revision(self, region: str, revision: int) -> "ModelMark":
        """Return the mark after the region's table was stored with this revision."""
        revisions = {**dict(self.revisions), region: revision}
        return ModelMark(tuple(sorted(revisions.items())), self.sets, self.settled)


@dataclass(frozen=True)
class StoredRegion:
    """Desired state of a region in the store."""

    documents: Mapping[DeploymentKey, str]
    """Replica sets as JSON: only those that differ are parsed."""
    digests: Mapping[DeploymentKey, str]
    revisions: Mapping[str, int]
    """Model -> revision of its route table in the region."""
    marks: Mapping[str, ModelMark]
    """By model that has a route table or a replica set in the region."""


def read_stored(repository: Repository, region: str) -> StoredRegion:
    """Read the desired state of a region."""
    documents = repository.deployment_documents(region)
    digests = {key: sha256(text.encode()).hexdigest() for key, text in documents.items()}  # canonical JSON
    models = {key.model for key in documents} | set(repository.models_routed_in(region))
    sets: dict[str, list[tuple[str, str]]] = defaultdict(list)
    for key, digest in digests.items():
        sets[key.model].append((str(key), digest))
    revisions: dict[str, dict[str, int]] = defaultdict(dict)
    for (model, at), revision in repository.revisions_of(models).items():
        revisions[model][at] = revision
    settled = repository.settled_generations(models)
    marks = {
        model: ModelMark(tuple(sorted(revisions[model].items())), tuple(sorted(sets[model])), settled.get(model))
        for model in models
    }
    own = {model: found[region] for model, found in revisions.items() if region in found}
    return StoredRegion(documents, digests, own, marks)
