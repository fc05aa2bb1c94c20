"""The amounts of a model's manifest in the quotas of its owner. Pure.

The figures are those that the manifest declares, not those that the planner gives the model: admission has no plan.

| quota | figure |
|---|---|
| `dollarsPerHour` | `spec.budgetPerHour`, which every plan keeps |
| `requestsPerSecond` | the sum of `spec.demand` in requests a second; a model in tokens a second counts 0 |
| `units.KIND` | the replicas that the demand needs if all of it is served on this kind, times their units |
| `replicas` | the same replicas, on the kind that needs the most of them, of each part |
"""

import math
from collections import defaultdict
from collections.abc import Mapping
from typing import Final, NamedTuple

from ipnext.errors import QuotaExceeded
from ipnext.model.fleet import HardwareOption
from ipnext.model.manifest import ModelManifest, ModelSpec, PartSpec
from ipnext.model.owner import ARTIFACTS, DOLLARS, MODELS, REPLICAS, REQUESTS, UNITS, OwnerManifest
from ipnext.model.throughput import REQUESTS as IN_REQUESTS

COPIES_TO_SURVIVE: Final = 2
"""Factor of a model that survives the loss of a region: two regions may each have to serve all of it."""

REPLICAS_SETTING: Final = "IPNEXT_OWNER_REPLICAS"
_NOISE: Final = 1e-9
"""Relative rounding error of sums of fractions."""


class Quota(NamedTuple):
    """A limit of an owner, and its source."""

    limit: float
    source: str


class Claim(NamedTuple):
    """A model's present amounts in the quotas; without a stored claim they are zero."""

    amounts: Mapping[str, float]
    """Quota -> figure."""
    is_counted: bool
    """Whether the model counts for its owner: it exists, is not retired and has this owner."""


def claims_of(manifest: ModelManifest) -> Mapping[str, float]:
    """Return quota -> the manifest's amount. `dollarsPerHour` is absent if the manifest states no budget."""
    spec = manifest.spec
    found: dict[str, float] = defaultdict(float)
    if spec.budget_per_hour is not None:
        found[DOLLARS] = spec.budget_per_hour
    if spec.unit == IN_REQUESTS:
        found[REQUESTS] = sum(item.amount for item in spec.demand)
    for part in spec.hosted:
        units: dict[str, float] = defaultdict(float)
        for option in part.hardware:
            units[option.kind] = max(units[option.kind], _replicas(spec, part, option) * option.units)
        found[REPLICAS] += max(_replicas(spec, part, option) for option in part.hardware)
        for kind, figure in units.items():
            found[f"{UNITS}{kind}"] += figure
    return dict(found)


def quotas_of(owner: OwnerManifest | None, *, replicas: int) -> Mapping[str, Quota]:
    """Return the limits of an owner. `replicas` applies if it has no object, or no such quota.

    The quota of bytes is left out: it applies to uploads, not to manifests.
    """
    limits = {} if owner is None else owner.spec.quotas.limits
    found = {quota: Quota(limit, f"quotas.{quota}") for quota, limit in limits.items() if quota != ARTIFACTS}
    return {REPLICAS: Quota(float(replicas), REPLICAS_SETTING), **found}


def check_quotas(
    owner: str,
    quotas: Mapping[str, Quota],
    claims: Mapping[str, float],
    before: Claim,
    others: Mapping[str, float],
) -> None:
    """Refuse claims that take an owner beyond a quota.

    `before`: the model's present amounts; a claim that does not grow is never refused, so that a model of an owner
    whose quota was lowered can still be changed. `others`: the amounts of the owner's other models.

    Raises:
        QuotaExceeded: it has the field, the value, the figure used and the limit.
    """
    known = before.amounts if before.is_counted else {}
    for quota, (limit, source) in quotas.items():
        if quota == MODELS:
            claimed, grows = 1.0, not before.is_counted
        elif quota == DOLLARS and DOLLARS not in claims:
            if not before.is_counted or DOLLARS in known:
                raise _unstated(owner, quotas[quota], others.get(DOLLARS, 0.0))
            continue
        else:
            claimed = claims.get(quota, 0.0)
            grows = claimed > known.get(quota, 0.0) * (1 + _NOISE)
        used = others.get(quota, 0.0)
        if grows and used + claimed > limit * (1 + _NOISE):
            raise _exceeded(owner, quota, claimed, used, Quota(limit, source))


def _replicas(spec: ModelSpec, part: PartSpec, option: HardwareOption) -> int:
    """Return the replicas that serve all demand with this option: at least `minReplicas` in each users' region."""
    copies = COPIES_TO_SURVIVE if spec.survive == "region" else 1
    least = max(part.min_replicas, 1)
    replicas = sum(
        max(least, math.ceil(item.amount / option.rate * (1 - _NOISE))) if option.rate else least
        for item in spec.demand
        if item.amount > 0
    )
    return copies * replicas


_FIELDS: Final = {MODELS: "metadata.owner", DOLLARS: "spec.budgetPerHour", REQUESTS: "spec.demand"}
_NOUNS: Final = {MODELS: "models", REPLICAS: "replicas", DOLLARS: "$/h", REQUESTS: "requests/s"}


def _exceeded(owner: str, quota: str, claimed: float, used: float, allowed: Quota) -> QuotaExceeded:
    field = _FIELDS.get(quota, "spec.parts")
    noun = _NOUNS.get(quota) or f"units of {quota.removeprefix(UNITS)}"
    value: object = owner if quota == MODELS else claimed
    asked = "one more model" if quota == MODELS else f"{claimed:g} {noun}"
    return _refusal(f"{field}: {asked}", owner, allowed, used, noun, field, value)


def _unstated(owner: str, allowed: Quota, used: float) -> QuotaExceeded:
    asked = f"spec.budgetPerHour: absent, and each model of an owner with a quota of {_NOUNS[DOLLARS]} states what it may cost"
    return _refusal(asked, owner, allowed, used, _NOUNS[DOLLARS], "spec.budgetPerHour", None)


def _refusal(  # noqa: PLR0913, PLR0917 - the parts of the message
    asked: str, owner: str, quota: Quota, used: float, noun: str, field: str, value: object
) -> QuotaExceeded:
    allowed = f"at most {max(0.0, quota.limit - used):g}"
    usage = f"{used:g} of {quota.limit:g} {noun}"
    msg = f"{asked}; owner {owner!r} uses {usage} in its other models ({quota.source}); allowed: {allowed}"
    return QuotaExceeded(msg, field=field, value=value, allowed=(allowed,))
