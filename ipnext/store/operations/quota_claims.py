"""Claims of models on the quotas of their owners: checked, written, and lowered again.

A model counts its newest manifest, and for as long as something is placed, runs or is under way also whatever it
counted before: its manifest may be refused, and the plan goes on by the former one.
"""

from collections.abc import Iterable, Mapping
from typing import Final

from ipnext.errors import StaleWrite
from ipnext.model.access.owner import DOLLARS, MODELS
from ipnext.model.manifest.derived.layout import parts_of
from ipnext.model.manifest.derived.owner_claims import (
    Claims,
    Quota,
    check_names,
    check_quotas,
    claims_of,
    claims_of_parts,
    claims_of_replicas,
    claims_of_wishes,
    exceeds,
    larger,
    quotas_of,
)
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.planning.plan import ModelProblem
from ipnext.store.records import ModelPlacement, ModelRecord
from ipnext.store.repository import Repository

NOTHING: Final[Claims] = {}


def admitted_claims(unit: Repository, manifest: ModelManifest, *, replicas: int, models: int, callers: int) -> Claims:
    """Check a new manifest against the quotas of its owner; return the claims to write with it.

    Call it in the unit of work that stores the manifest. `replicas`, `models` and `callers` are the limits of an owner
    without such quotas. Raises QuotaExceeded.
    """
    name, owner = manifest.name, manifest.metadata.owner
    declared = declared_claims(unit, manifest)
    unit.lock_owner(owner)
    counted = larger(declared, _held_claims(unit, name))
    asked = counted if DOLLARS in declared else _without_budget(counted)
    _check(unit, name, owner, asked, replicas=replicas, models=models, callers=callers)
    record = unit.find_model(name)
    if record is None or record.manifest.metadata.owner != owner:
        quotas = _quotas(unit, owner, replicas=replicas, models=models)
        check_names(owner, quotas[MODELS], unit.count_names(owner, but=name))
    return counted


def admit_wishes(unit: Repository, wishes: ModelProblem, *, replicas: int) -> None:
    """Count the wishes that a plan is about to place a model by, if they need more than the model counts.

    They do after a snapshot was cut into more parts than the policy showed, or was measured to be slower. Call it in a
    unit of work of the model, before that adopts the plan. A model without claims is let through. Raises QuotaExceeded,
    and StaleWrite if the model has another owner by now.
    """
    name, owner, claims = wishes.model, wishes.owner, claims_of_wishes(wishes)
    if (now := unit.model(name).manifest.metadata.owner) != owner:
        msg = f"model {name!r} belongs to {now!r} by now, and was planned for {owner!r}; plan it again"
        raise StaleWrite(msg)
    known = unit.claim_of(name, owner).amounts
    if not known or not exceeds(claims, known):
        return
    unit.lock_owner(owner)
    known = unit.claim_of(name, owner).amounts
    if exceeds(claims, known):
        counted = larger(claims, known)
        _check(unit, name, owner, counted, replicas=replicas)
        unit.claim(name, counted)


def admit_measured(unit: Repository, record: ModelRecord, *, replicas: int) -> None:
    """Count what a model needs by the throughput that was measured now. Raises QuotaExceeded.

    Call it in the unit of work that stores the measurement. A model without claims is let through.
    """
    name, owner = record.name, record.manifest.metadata.owner
    claims = declared_claims(unit, record.manifest)
    known = unit.claim_of(name, owner).amounts
    if record.retired or not known or not exceeds(claims, known):
        return
    unit.lock_owner(owner)
    counted = larger(claims, known)
    _check(unit, name, owner, counted if DOLLARS in claims else _without_budget(counted), replicas=replicas)
    unit.claim(name, counted)


def beyond_claims(unit: Repository, wishes: Iterable[ModelProblem]) -> frozenset[str]:
    """Return the models whose wishes need more than they count: a plan of the fleet leaves these as they are placed.

    Models without claims are never among them.
    """
    found = {each.model: each for each in wishes}
    counted = unit.claims_named(found)
    return frozenset(name for name, claims in counted.items() if exceeds(claims_of_wishes(found[name]), claims))


def lower_claims(unit: Repository, name: str) -> None:
    """Lower a model's claims to its newest manifest once no plan and no change goes by a former one.

    It never raises them. Call it with the end of a change, after the plan in force was settled.
    """
    if unit.open_kinds(name) or _lower_claims(unit, name) is None:
        return
    unit.lock_plan_in_force()  # a plan of the fleet reads the claims while it holds this lock
    lowered = _lower_claims(unit, name)
    if lowered is not None:
        unit.claim(name, lowered)


def _lower_claims(unit: Repository, name: str) -> Claims | None:
    """Return the claims of a model's newest manifest, of its placement's wishes, and of what is placed and runs.

    The last two may be larger: a way back leaves the replicas of before beside the wishes of the rollout. None if they
    are no lower.
    """
    record, counted = unit.model(name), unit.claim_of(name, "").amounts
    follows = record.observed_generation == record.generation and record.refused_generation is None
    if record.retired or (not follows and _holds(unit, name)):
        return None
    placed = unit.placement(name)
    wishes = claims_of_wishes(placed.wishes) if placed else NOTHING
    runs = claims_of_replicas((d.key.hardware, d.replicas, d.units) for d in unit.deployments(name))
    wanted = larger(declared_claims(unit, record.manifest), wishes, _sum_placed(placed), runs)
    lowered = {quota: min(amount, wanted[quota]) for quota, amount in counted.items() if quota in wanted}
    return None if lowered == counted else lowered


def declared_claims(unit: Repository, manifest: ModelManifest) -> Claims:
    """Return the claims of a manifest over all parts that a plan may choose.

    Its own, and those of generations that were cut.
    """
    name, spec, record = manifest.name, manifest.spec, unit.find_model(manifest.name)
    used = (record.serving_generation, record.target_generation) if record else ()
    numbers = sorted({number for number in used if number is not None})
    own = [claims_of(unit.as_measured(manifest, number)) for number in numbers or (None,)]
    layouts = [unit.generation(name, number).layout for number in numbers]
    return larger(*own, *(claims_of_parts(spec, parts_of(spec, layout)) for layout in layouts if layout is not None))


def _held_claims(unit: Repository, name: str) -> Claims:
    """Return what a model counts already if something of it is placed, runs or is under way."""
    return unit.claim_of(name, "").amounts if unit.open_kinds(name) or _holds(unit, name) else NOTHING


def _holds(unit: Repository, name: str) -> bool:
    placed = unit.placement(name)
    return (placed is not None and bool(placed.replicas)) or bool(unit.deployments(name))


def _sum_placed(placement: ModelPlacement | None) -> Claims:
    if placement is None:
        return NOTHING
    units = placement.wishes.units
    rows = ((row, units.get((row.part, row.hardware), 0.0)) for row in placement.replicas)
    return claims_of_replicas((row.hardware, row.count, of_one) for row, of_one in rows)


def _check(  # noqa: PLR0913 - the limits of an owner without quotas
    unit: Repository,
    name: str,
    owner: str,
    claims: Claims,
    *,
    replicas: int,
    models: int | None = None,
    callers: int | None = None,
) -> None:
    quotas = _quotas(unit, owner, replicas=replicas, models=models, callers=callers)
    check_quotas(owner, quotas, claims, unit.claim_of(name, owner), unit.sum_claims(owner, but=name))


def _quotas(
    unit: Repository, owner: str, *, replicas: int, models: int | None = None, callers: int | None = None
) -> Mapping[str, Quota]:
    record = unit.find_owner(owner)
    return quotas_of(None if record is None else record.manifest, replicas=replicas, models=models, callers=callers)


def _without_budget(claims: Claims) -> Claims:
    return {quota: amount for quota, amount in claims.items() if quota != DOLLARS}
