"""Memory that replicas of a part need on each of its hardware kinds, against what they have.

The sizes are those by which hosts refuse a load (`ipnext.model.deployment.footprint`). Called by the validation, and by
the optimization for what it derives.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Final

from ipnext.model.deployment.deployment import SERVING_ENGINES
from ipnext.model.deployment.footprint import PROCESS_BYTES, needed_bytes
from ipnext.model.fleet import HardwareOption
from ipnext.model.lifecycle.checks import CheckOutcome, CheckResult
from ipnext.model.lifecycle.status import Reason
from ipnext.model.manifest.part import PartSpec
from ipnext.model.registry.registry import Snapshot

MEMORY: Final = "memory"
"""The check's name."""


@dataclass(frozen=True, slots=True)
class Need:
    """Bytes that one replica needs: of its host's process, and of an engine's device if that serves by itself."""

    host: int
    device: int = 0


def need_of(snapshot: Snapshot) -> Need:
    """Return what a host with a full snapshot and without adapters needs."""
    return Need(PROCESS_BYTES + needed_bytes(snapshot.manifest))


def judge_part(part: PartSpec, needs: Mapping[str, Need], unit_bytes: Mapping[str, int]) -> CheckResult:
    """Judge a part by what it needs on each of its kinds: it is refused if it fits none.

    `unit_bytes`: hardware kind -> memory of one unit, of kinds for which the fleet tells it.
    """
    kinds = {option.kind: _judge(part, option, needs[option.kind], unit_bytes) for option in part.hardware}
    limited = {kind: found for kind, found in kinds.items() if not found["fits"]}
    told = "; ".join(
        f"{kind}: needs {found['neededBytes']:,} bytes, has {found['availableBytes']:,} ({found['limit']})"
        for kind, found in sorted(limited.items())
    )
    if len(limited) == len(kinds):
        return CheckResult(
            check=MEMORY,
            subject=part.name,
            outcome=CheckOutcome.REFUSED,
            reason=Reason.OUT_OF_MEMORY,
            message=f"fits no hardware kind of the part: {told}",
            evidence={"kinds": kinds},
        )
    fitting = ", ".join(sorted(kinds.keys() - limited.keys()))
    message = f"fits {fitting}" + (f"; not {told}" if told else "")
    return CheckResult(
        check=MEMORY, subject=part.name, outcome=CheckOutcome.PASSED, message=message, evidence={"kinds": kinds}
    )


def _judge(part: PartSpec, option: HardwareOption, need: Need, unit_bytes: Mapping[str, int]) -> dict[str, Any]:
    """Return needed and available bytes of a replica on one hardware kind. Without a limit it fits."""
    units = unit_bytes.get(option.kind)
    limits = [] if part.memory_bytes is None else [(need.host, part.memory_bytes, "memoryBytes of the part")]
    if units is not None:
        needed = need.device if part.engine in SERVING_ENGINES else need.host
        limits.append((needed, int(units * option.units), f"{option.units:g} units of the fleet's memoryBytes"))
    if not limits:
        return {"neededBytes": need.host, "availableBytes": None, "limit": None, "fits": True}
    needed, available, limit = min(limits, key=lambda each: each[1] - each[0])
    return {"neededBytes": needed, "availableBytes": available, "limit": limit, "fits": needed <= available}
