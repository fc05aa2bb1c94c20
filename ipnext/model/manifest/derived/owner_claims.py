"""The amounts of a model in the quotas of its owner, by its manifest or by the wishes that it is placed by. Pure.

The figures are those that are declared, not those that the planner gives the model: admission has no plan.

| quota | figure |
|---|---|
| `dollarsPerHour` | `spec.budgetPerHour`, which every plan keeps |
| `requestsPerSecond` | the sum of `spec.demand` in requests a second; a model in tokens a second counts 0 |
| `units.KIND` | the replicas that the demand needs if all of it is served on this kind, times their units |
| `replicas` | the same replicas, on the kind that needs the most of them, of each part |
| `callers` | the entries of `spec.access.callers`: every region's access list has them |

A model that is cut (`spec.split`) counts the larger figure of the part listed and of the parts that the policy makes.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping
from itertools import chain
from typing import Final, NamedTuple

from ipnext.errors import QuotaExceeded
from ipnext.model.access.owner import ARTIFACTS, CALLERS, DOLLARS, MODELS, REPLICAS, REQUESTS, UNITS, OwnerManifest
from ipnext.model.fleet import HardwareOption
from ipnext.model.manifest.manifest import ModelManifest, ModelSpec
from ipnext.model.manifest.part import PartSpec
from ipnext.model.manifest.split import MOST_HOSTED_PARTS, SplitPart, SplitPolicy, options_of
from ipnext.model.planning.plan import ModelProblem
from ipnext.model.throughput import REQUESTS as IN_REQUESTS

Claims = Mapping[str, float]
"""Quota -> amount."""

COPIES_TO_SURVIVE: Final = 2
"""Factor of a model that survives the loss of a region: two regions may each have to serve all of it."""

REPLICAS_SETTING: Final = "IPNEXT_OWNER_REPLICAS"
MODELS_SETTING: Final = "IPNEXT_OWNER_MODELS"
CALLERS_SETTING: Final = "IPNEXT_OWNER_CALLERS"
NAMES_OF_A_MODEL: Final = 10
"""An owner has at most so many times its quota of models, if those that are retired count, too: they are never deleted,
keep their names, and are in every region's access list."""
_NOISE: Final = 1e-9
"""Relative rounding error of sums of fractions."""


class Quota(NamedTuple):
    """A limit of an owner, and its source."""

    limit: float
    source: str


class QuotaClaim(NamedTuple):
    """A model's present amounts in the quotas; without a stored claim they are zero."""

    amounts: Mapping[str, float]
    """Quota -> figure."""
    is_counted: bool
    """Whether the model counts for its owner: it exists, is not retired and has this owner."""


class _Option(NamedTuple):
    """One way to run a part."""

    kind: str
    units: float
    rate: float | None
    """Throughput of a replica in the model's unit; None: neither declared nor measured."""


class _Part(NamedTuple):
    """A part with processes."""

    min_replicas: int
    options: tuple[_Option, ...]


def claims_of(manifest: ModelManifest) -> Claims:
    """Return quota -> the manifest's amount. `dollarsPerHour` is absent if the manifest states no budget."""
    spec = manifest.spec
    whole = claims_of_parts(spec, spec.hosted_parts)
    return (
        whole if spec.split is None else larger(whole, _with_parts(spec, _cut_parts(spec.split, spec.hosted_parts[0])))
    )


def claims_of_parts(spec: ModelSpec, parts: Iterable[PartSpec]) -> Claims:
    """Return the amounts of a manifest with these hosted parts, such as those that a snapshot was cut into."""
    return _with_parts(spec, (_part(part, part.hardware) for part in parts))


def claims_of_wishes(wishes: ModelProblem) -> Claims:
    """Return the amounts of the wishes that a plan places a model by.

    They do not tell the unit of the demand, so `requestsPerSecond` is absent.
    """
    parts = (_Part(p.min_replicas, tuple(_Option(o.hardware, o.units, o.qps) for o in p.options)) for p in wishes.parts)
    amounts = [item.qps for item in wishes.demand]
    found = _needs(parts, amounts, survives=wishes.survive == "region")
    return found if wishes.budget_per_hour is None else {**found, DOLLARS: wishes.budget_per_hour}


def claims_of_replicas(rows: Iterable[tuple[str, int, float]]) -> Claims:
    """Return the amounts of replicas. A row is a hardware kind, a number of replicas and the units of one."""
    found: dict[str, float] = defaultdict(float, {REPLICAS: 0.0})
    for kind, count, units in rows:
        found[REPLICAS] += count
        found[f"{UNITS}{kind}"] += count * units
    return dict(found)


def larger(*claims: Claims) -> Claims:
    """Return the largest amount of each quota."""
    return {quota: max(c.get(quota, 0.0) for c in claims) for quota in chain.from_iterable(claims)}


def exceeds(claims: Claims, counted: Claims) -> bool:
    """Return whether any amount is larger than the one that is counted."""
    return any(amount > counted.get(quota, 0.0) * (1 + _NOISE) for quota, amount in claims.items())


def quotas_of(
    owner: OwnerManifest | None, *, replicas: int, models: int | None = None, callers: int | None = None
) -> Mapping[str, Quota]:
    """Return the limits of an owner. `replicas`, `models` and `callers` apply if it has no object, or no such quota.

    The quota of bytes is left out: it applies to uploads, not to manifests.
    """
    limits = {} if owner is None else owner.spec.quotas.limits
    found = {quota: Quota(limit, f"quotas.{quota}") for quota, limit in limits.items() if quota != ARTIFACTS}
    defaults = {REPLICAS: Quota(float(replicas), REPLICAS_SETTING)}
    if models is not None:
        defaults[MODELS] = Quota(float(models), MODELS_SETTING)
    if callers is not None:
        defaults[CALLERS] = Quota(float(callers), CALLERS_SETTING)
    return {**defaults, **found}


def check_quotas(
    owner: str,
    quotas: Mapping[str, Quota],
    claims: Mapping[str, float],
    before: QuotaClaim,
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
                raise _unstated_error(owner, quotas[quota], others.get(DOLLARS, 0.0))
            continue
        else:
            claimed = claims.get(quota, 0.0)
            grows = claimed > known.get(quota, 0.0) * (1 + _NOISE)
        used = others.get(quota, 0.0)
        if grows and used + claimed > limit * (1 + _NOISE):
            raise _exceeded_error(owner, quota, claimed, used, Quota(limit, source))


def check_names(owner: str, quota: Quota, others: int) -> None:
    """Refuse a further model of an owner that has `others`, retired ones included. Raises QuotaExceeded.

    `quota`: of models that are not retired.
    """
    most = int(quota.limit) * NAMES_OF_A_MODEL
    if others >= most:
        msg = (
            f"metadata.name: one more model; owner {owner!r} has {others} with those that are retired, of {most} "
            f"({NAMES_OF_A_MODEL} times {quota.source}); allowed: the name of a retired one"
        )
        raise QuotaExceeded(msg, field="metadata.name", allowed=("the name of a retired model",))


def _with_parts(spec: ModelSpec, parts: Iterable[_Part]) -> Claims:
    amounts = [item.amount for item in spec.demand]
    found = _needs(parts, amounts, survives=spec.survive == "region")
    if spec.budget_per_hour is not None:
        found[DOLLARS] = spec.budget_per_hour
    if spec.unit == IN_REQUESTS:
        found[REQUESTS] = sum(amounts)
    if spec.access.callers:
        found[CALLERS] = float(len(spec.access.callers))
    return found


def _part(part: PartSpec, hardware: Iterable[HardwareOption]) -> _Part:
    return _Part(part.min_replicas, tuple(_Option(o.kind, o.units, o.rate) for o in hardware))


def _cut_parts(policy: SplitPolicy, whole: PartSpec) -> list[_Part]:
    """Return the parts that a policy makes of one. Of shards by bytes, whose number the snapshot decides, it is one."""
    rest = () if any(part.name == policy.default for part in policy.parts) else (_part(whole, whole.hardware),)
    dealt = (
        _part(whole, options_of(own.hardware, whole.hardware)) for own in policy.parts for _ in range(_shards(own))
    )
    return [*rest, *dealt][:MOST_HOSTED_PARTS]


def _shards(part: SplitPart) -> int:
    return 1 if part.shard is None else part.shard.count or 1


def _needs(parts: Iterable[_Part], amounts: Iterable[float], *, survives: bool) -> dict[str, float]:
    """Return units and replicas that serve the demand of each users' region."""
    demand, copies = [amount for amount in amounts if amount > 0], COPIES_TO_SURVIVE if survives else 1
    found: dict[str, float] = defaultdict(float, {REPLICAS: 0.0})
    for part in parts:
        units: dict[str, float] = defaultdict(float)
        needed = [(option, copies * _replicas(part, option, demand)) for option in part.options]
        for option, replicas in needed:
            units[option.kind] = max(units[option.kind], replicas * option.units)
        found[REPLICAS] += max(replicas for _, replicas in needed)
        for kind, figure in units.items():
            found[f"{UNITS}{kind}"] += figure
    return dict(found)


def _replicas(part: _Part, option: _Option, demand: Iterable[float]) -> int:
    """Return the replicas that serve all demand with this option: at least `min_replicas` in each users' region."""
    least, rate = max(part.min_replicas, 1), option.rate
    return sum(max(least, math.ceil(amount / rate * (1 - _NOISE))) if rate else least for amount in demand)


_FIELDS: Final = {
    MODELS: "metadata.owner",
    DOLLARS: "spec.budgetPerHour",
    REQUESTS: "spec.demand",
    CALLERS: "spec.access.callers",
}
_NOUNS: Final = {
    MODELS: "models",
    REPLICAS: "replicas",
    DOLLARS: "$/h",
    REQUESTS: "requests/s",
    CALLERS: "callers",
}


def _exceeded_error(owner: str, quota: str, claimed: float, used: float, allowed: Quota) -> QuotaExceeded:
    field = _FIELDS.get(quota, "spec.parts")
    noun = _NOUNS.get(quota) or f"units of {quota.removeprefix(UNITS)}"
    value: object = owner if quota == MODELS else claimed
    asked = "one more model" if quota == MODELS else f"{claimed:g} {noun}"
    return _refusal(f"{field}: {asked}", owner, allowed, used, noun, field, value)


def _unstated_error(owner: str, allowed: Quota, used: float) -> QuotaExceeded:
    asked = (
        f"spec.budgetPerHour: absent, and each model of an owner with a quota of {_NOUNS[DOLLARS]} states "
        "what it may cost"
    )
    return _refusal(asked, owner, allowed, used, _NOUNS[DOLLARS], "spec.budgetPerHour", None)


def _refusal(  # noqa: PLR0913, PLR0917 - the parts of the message
    asked: str, owner: str, quota: Quota, used: float, noun: str, field: str, value: object
) -> QuotaExceeded:
    allowed = f"at most {max(0.0, quota.limit - used):g}"
    usage = f"{used:g} of {quota.limit:g} {noun}"
    msg = f"{asked}; owner {owner!r} uses {usage} in its other models ({quota.source}); allowed: {allowed}"
    return QuotaExceeded(msg, field=field, value=value, allowed=(allowed,))
