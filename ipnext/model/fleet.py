"""The resources for models: regions, hardware, supply, round-trip times, owners' budgets (`kind: Fleet`)."""

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Annotated, Final, Literal, Self

from pydantic import Field, model_validator

from ipnext.errors import InvalidInput
from ipnext.model.throughput import Throughput
from ipnext.model.value import LARGEST_FIGURE, SMALLEST_RATE, SMALLEST_UNITS, Name, WrittenValue

MOST_BYTES: Final = 1 << 50
"""Largest memory of a replica or of a unit of hardware that a manifest may name."""

UNMEASURED = (
    "profile: true, and no profile is there; give a number until there is one, or measure with `ipnext profile`"
)


class HardwareOption(Throughput):
    """One way to run a part: `units` of hardware `kind` a replica give `qps`, or `tokens_per_second`."""

    kind: Name
    units: float = Field(ge=SMALLEST_UNITS, le=LARGEST_FIGURE)
    qps: float | None = Field(default=None, ge=SMALLEST_RATE, le=LARGEST_FIGURE)
    tokens_per_second: float | None = Field(default=None, ge=SMALLEST_RATE, le=LARGEST_FIGURE)
    profile: bool | None = None
    """The newest measured profile says the throughput; the number, if there is one, holds until the first."""

    @model_validator(mode="after")
    def _is_known_or_measured(self) -> Self:
        if self.rate is None and not self.profile:
            msg = f"{self.kind}: one of qps, tokensPerSecond and profile: true says the throughput, got none of them"
            raise ValueError(msg)
        return self

    @property
    def throughput(self) -> float:
        """Throughput of one replica in the model's unit.

        Raises InvalidInput if it was never measured and no number is given.
        """
        if self.rate is None:
            msg = f"hardware {self.kind}: {UNMEASURED}"
            raise InvalidInput(msg, field="hardware", value=self.kind)
        return self.rate


def check_kinds_differ(part: str, kinds: Iterable[str]) -> None:
    """Refuse a part that names a hardware kind more than once: there would be no telling which figures hold.

    Raises ValueError.
    """
    kind, times = max(Counter(kinds).items(), key=lambda found: found[1], default=("", 0))
    if times > 1:
        msg = f"hardware: part {part!r} names the kind {kind!r} {times} times; allowed: once, with one throughput"
        raise ValueError(msg)


class SupplyItem(WrittenValue):
    """Units of one hardware kind in one region, at `unit_cost` $/h a unit."""

    region: Name
    hardware: Name
    units: float = Field(ge=0)
    unit_cost: float = Field(ge=0)


class OwnerBudget(WrittenValue):
    """What an owner may spend, in $/h; null is no limit."""

    owner: Name
    budget_per_hour: float | None = Field(default=None, ge=0)


class FleetSpec(WrittenValue):
    """The whole fleet. `rtt_ms[s][r]` is the round trip in ms from users in region s to servers in region r."""

    regions: tuple[Name, ...] = Field(min_length=1)
    rtt_ms: tuple[tuple[float, ...], ...]
    hardware: tuple[Name, ...] = Field(min_length=1)
    supply: tuple[SupplyItem, ...]
    owners: tuple[OwnerBudget, ...] = ()
    require_owners: bool = False
    """Whether a manifest is refused whose owner has no object of kind Owner."""
    least_units: Mapping[Name, Annotated[float, Field(ge=0, le=LARGEST_FIGURE)]] = Field(default_factory=dict)
    """Hardware kind -> the fewest units that a replica may declare: so the supply bounds the number of hosts."""

    memory_bytes: Mapping[Name, Annotated[int, Field(gt=0, le=MOST_BYTES)]] = Field(default_factory=dict)
    """Hardware kind -> memory of one unit, in which replicas have their snapshots: the check `memory`."""

    @model_validator(mode="after")
    def _names_and_shapes_agree(self) -> Self:
        n = len(self.regions)
        if len(set(self.regions)) != n or len(set(self.hardware)) != len(self.hardware):
            msg = "regions and hardware: each name may stand once"
            raise ValueError(msg)
        if len(self.rtt_ms) != n or any(len(row) != n for row in self.rtt_ms):
            msg = f"rttMs: must be {n} rows of {n} numbers, one for each region"
            raise ValueError(msg)
        if any(ms < 0 for row in self.rtt_ms for ms in row):
            msg = "rttMs: must not be negative"
            raise ValueError(msg)
        for kind in self.least_units:
            if kind not in self.hardware:
                msg = f"leastUnits.{kind}: unknown hardware {kind!r}; known: {list(self.hardware)}"
                raise ValueError(msg)
        for kind in self.memory_bytes:
            if kind not in self.hardware:
                msg = f"memoryBytes.{kind}: unknown hardware {kind!r}; known: {list(self.hardware)}"
                raise ValueError(msg)
        seen: set[tuple[str, str]] = set()
        for item in self.supply:
            if item.region not in self.regions:
                msg = f"supply.region: unknown region {item.region!r}; known: {list(self.regions)}"
                raise ValueError(msg)
            if item.hardware not in self.hardware:
                msg = f"supply.hardware: unknown hardware {item.hardware!r}; known: {list(self.hardware)}"
                raise ValueError(msg)
            if (item.region, item.hardware) in seen:
                msg = f"supply: {item.region}/{item.hardware} stands twice"
                raise ValueError(msg)
            seen.add((item.region, item.hardware))
        return self


class FleetManifest(WrittenValue):
    """`kind: Fleet`, as a capacity engineer writes it."""

    api_version: Literal["ipnext/v1"]
    kind: Literal["Fleet"]
    spec: FleetSpec
