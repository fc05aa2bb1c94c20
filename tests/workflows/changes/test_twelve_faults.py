"""Twelve faults, each injected into a whole platform.

`explain` names one reason, the chain down to it, and what to do.
"""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from types import SimpleNamespace
from typing import Any

import pytest

from ipnext.api.services.explanation import explanation_of
from ipnext.api.services.model_facts import model_facts
from ipnext.api.services.region_states import States
from ipnext.artifacts.signing import write_key_pair
from ipnext.errors import Unavailable
from ipnext.model.api.resources import StatusExplanation
from ipnext.model.deployment.deployment import DeploymentKey
from ipnext.model.lifecycle.reasons import ADVICE
from ipnext.model.lifecycle.status import Reason
from ipnext.model.manifest.freeze import FreezeManifest

pytestmark = pytest.mark.usefixtures("workers")

QUICK = {"canary": 0.1, "maxStep": 0.5, "deadlineSeconds": 4}
PATIENT = {**QUICK, "deadlineSeconds": 180}
HOST = "dense.cpu.0"


def no_capacity(at: Any) -> Any:
    at.house.apply_fleet(at.kit.FLEET.replace("units: 40", "units: 1"))
    return at.publish(rollout=PATIENT)


def quota(at: Any) -> Any:
    at.house.apply_fleet(at.kit.FLEET + "  owners: [{owner: default, budgetPerHour: 0.5}]\n")
    return at.publish(rollout=PATIENT)


def planner_infeasible(at: Any) -> Any:
    return at.publish(rollout=PATIENT, latencyToleranceMs=0.5)


def bad_path(at: Any) -> Any:
    change = at.publish(rollout=PATIENT)
    with at.house.store.read() as unit:
        (lost, *_) = unit.snapshot(at.model, "dense", change.generation).manifest.files
    (at.house.root / "artifacts" / "blobs" / lost.sha256).unlink()
    return change


def schema(at: Any) -> Any:
    other = at.kit.DENSE.model_copy(update={"inputs": (at.kit.MID.model_copy(update={"name": "y"}),)})
    return at.publish(rollout=PATIENT, dense=at.house.source(other, at.kit.weights(5)))


def signature(at: Any) -> Any:
    write_key_pair(at.house.root / "key.pem", at.house.root / "key.pub.pem")
    key = (at.house.root / "key.pub.pem").read_text()
    return at.publish(rollout=PATIENT, validation={"signers": {"publicKeys": [key]}})


def out_of_memory(at: Any) -> Any:
    dense = at.house.source(at.kit.DENSE, at.kit.weights(77))
    at.house.infrastructure.fail_load(dense.manifest.digest, code="MemoryExceeded", message="needs about 9,000 MB")
    return at.publish(rollout=PATIENT, dense=dense)


def crash_loop(at: Any) -> Any:
    at.house.infrastructure.crash_always(DeploymentKey(model=at.model, part="dense", region="us-east", hardware="cpu"))
    return at.publish(rollout=PATIENT)


def time_out(at: Any) -> Any:
    at.house.infrastructure.stall(DeploymentKey(model=at.model, part="dense", region="us-east", hardware="cpu"))
    return at.publish(rollout=QUICK)


async def failed_canary(at: Any) -> Any:
    await at.carried_out(at.publish(rollout=PATIENT))
    at.house.infrastructure.answer_with(at.model, 2, errors=0.3)
    return at.house.publish(at.model, 2)


async def unreachable_region(at: Any) -> Any:
    await at.carried_out(at.publish(rollout=PATIENT))
    at.house.apply(at.model, rollout=QUICK)
    at.house.infrastructure.cut("eu-west")
    return at.house.publish(at.model, 2)


async def freeze(at: Any) -> None:
    now = datetime.now(UTC).replace(tzinfo=None, microsecond=0)
    window = {"start": now, "end": now + timedelta(hours=1)}
    spec = {"reason": "the shop is full", "windows": [window], "scope": {"models": [at.model]}, "kinds": ["publish"]}
    manifest = {"apiVersion": "ipnext/v1", "kind": "Freeze", "metadata": {"name": "sale"}, "spec": spec}
    with at.house.store.begin() as unit:
        unit.put_freeze(FreezeManifest.model_validate(manifest), expected_version=None)
    change = at.publish(rollout=PATIENT)
    await at.submit(change)
    await at.until(lambda: at.house.change(change.id).reason is Reason.FROZEN)


@dataclass(frozen=True)
class Told:
    """What `explain` shall say. `chain`: level -> the end of its subject; other levels of place are absent."""

    inject: Callable[[Any], Any]
    reason: Reason
    step: str
    chain: Mapping[str, str] = field(default_factory=dict)
    words: str = ""
    """In the message."""


HOST_CHAIN = {"part": "dense", "region": "us-east", "host": HOST}

FAULTS = {
    "no capacity": Told(no_capacity, Reason.NO_CAPACITY, "plan", {"region": "us-east"}, "supply us-east/cpu"),
    "quota": Told(quota, Reason.OVER_BUDGET, "plan", {"region": "us-east"}, "budget owner default"),
    "planner infeasible": Told(
        planner_infeasible,
        Reason.PLANNER_INFEASIBLE,
        "plan",
        {"region": "us-east"},
        "reaches no region from the users of 'us-east'",
    ),
    "freeze": Told(freeze, Reason.FROZEN, "plan", {}, "the shop is full"),
    "bad path": Told(bad_path, Reason.ARTIFACT_MISSING, "validate", {"part": "dense"}, "is not in"),
    "schema": Told(schema, Reason.SCHEMA_MISMATCH, "validate", {"part": "dense"}, "dense"),
    "signature": Told(signature, Reason.SIGNATURE_INVALID, "validate", {"part": "dense"}, "has no signature"),
    "out of memory on load": Told(
        out_of_memory,
        Reason.OUT_OF_MEMORY,
        "bring up capacity",
        {"part": "dense", "region": "eu-west", "host": HOST},
        "9,000",
    ),
    "crash loop": Told(crash_loop, Reason.CRASH_LOOP, "bring up capacity", HOST_CHAIN, "ended by SIGKILL"),
    "time-out": Told(time_out, Reason.DEADLINE_EXCEEDED, "bring up capacity", HOST_CHAIN, "not ready within"),
    "failed canary": Told(failed_canary, Reason.GATE_FAILED, "check the answers", {"region": "eu-west"}, "errors"),
    "unreachable region": Told(
        unreachable_region, Reason.REGION_UNREACHABLE, "bring up capacity", {"region": "eu-west"}, "eu-west"
    ),
}


@pytest.fixture
def at(house, kit, model, carried_out, submit, until) -> SimpleNamespace:
    """The platform, and a first publish of a model."""

    def publish(**spec: Any) -> Any:
        parts = {name: spec.pop(name) for name in ("dense", "sparse") if name in spec}
        house.apply(model, **spec)
        return house.publish(model, 1, **parts)

    return SimpleNamespace(
        house=house, kit=kit, model=model, carried_out=carried_out, submit=submit, until=until, publish=publish
    )


def explained(house: Any, model: str) -> StatusExplanation:
    """What the API answers: by the store, and by the regions as they are now."""
    states = {}
    for region in house.infrastructure.regions():
        try:
            states[region] = house.infrastructure.observe(region)
        except Unavailable:
            states[region] = None
    with house.store.read() as unit:
        return explanation_of(unit, model_facts(unit, model), States(states))


@pytest.mark.parametrize("name", FAULTS)
async def test_a_fault_has_one_reason_and_the_chain_leads_to_it(at, name):
    told = FAULTS[name]
    change = told.inject(at)
    change = await change if isinstance(change, Awaitable) else change
    if change is not None:
        await at.carried_out(change)

    explanation = explained(at.house, at.model)

    assert (explanation.reason, explanation.ready) == (told.reason, False), explanation
    assert told.words in explanation.message
    assert explanation.advice == ADVICE[told.reason].replace("MODEL", at.model).replace("CHANGE", f"{at.model}-p1")
    links = {link.level: link for link in explanation.chain}
    assert len(links) == len(explanation.chain), "each level stands once"
    assert list(links)[:3] == ["deployment", "change", "step"]
    assert list(links)[-1] == "cause"
    assert links["cause"].subject == told.reason.value
    assert links["step"].subject == told.step
    places = {level: link.subject for level, link in links.items() if level in {"part", "region", "host"}}
    assert places.keys() == told.chain.keys(), places
    for level, end in told.chain.items():
        assert places[level].endswith(end), places


def test_no_two_faults_have_the_same_reason():
    reasons = [told.reason for told in FAULTS.values()]
    assert len(reasons) == 12
    assert len(set(reasons)) == len(reasons)
    assert not {Reason.INTERNAL_ERROR, Reason.ROLLED_BACK, Reason.LOAD_FAILED} & set(reasons)
