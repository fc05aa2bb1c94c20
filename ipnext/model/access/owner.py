"""`kind: Owner`: roles over an owner's models, and the limits of their use; and the API's answers about them."""

from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final, Literal, Self

from pydantic import Field, SerializerFunctionWrapHandler, StringConstraints, model_serializer, model_validator

from ipnext.model.access.rights import Role
from ipnext.model.access.roles import Subject
from ipnext.model.metadata import Metadata
from ipnext.model.value import Name, Value, WrittenValue

MOST_MEMBERS: Final = 500
MOST_KINDS: Final = 100
"""Hardware kinds with a quota."""
HIGHEST_PRIORITY: Final = 1000

MODELS: Final = "models"
DOLLARS: Final = "dollarsPerHour"
REQUESTS: Final = "requestsPerSecond"
ARTIFACTS: Final = "artifactBytes"
REPLICAS: Final = "replicas"
CALLERS: Final = "callers"
UNITS: Final = "units."
"""Prefix of the name of a quota of units: `units.l4`."""

Description = Annotated[str, StringConstraints(strip_whitespace=True, max_length=500)]


class OwnerMember(WrittenValue):
    """A role of a person or group over the owner's models: a role binding, as `ipnext roles grant --owner` makes it."""

    subject: Subject
    role: Role


class OwnerQuotas(WrittenValue):
    """What an owner's models may ask for together. A quota that is left out is no limit."""

    models: int | None = Field(default=None, ge=0, lt=2**31)
    """Models that are not retired."""
    units: Mapping[Name, Annotated[float, Field(ge=0)]] = Field(default_factory=dict, max_length=MOST_KINDS)
    """Hardware kind -> units in all regions, as the manifests declare them
    (`ipnext.model.manifest.derived.owner_claims`)."""
    replicas: int | None = Field(default=None, ge=0, lt=2**31)
    """Replicas, each a process, as the manifests declare them; left out: as the platform's setting says."""
    dollars_per_hour: float | None = Field(default=None, ge=0)
    """$/h: the sum of the models' `spec.budgetPerHour`."""
    requests_per_second: float | None = Field(default=None, ge=0)
    """The sum of the models' declared demand in requests a second."""
    callers: int | None = Field(default=None, ge=0, lt=2**31)
    """Entries of `spec.access.callers` of all models; left out: as the platform's setting says."""
    artifact_bytes: int | None = Field(default=None, ge=0, lt=2**63)
    """Bytes in the artifact store that were uploaded for the owner's models; left out: as the platform's setting
    says."""

    @property
    def limits(self) -> Mapping[str, float]:
        """Quota by name, such as `units.l4`, -> its limit."""
        found = {
            MODELS: self.models,
            REPLICAS: self.replicas,
            DOLLARS: self.dollars_per_hour,
            REQUESTS: self.requests_per_second,
            CALLERS: self.callers,
        }
        named = {name: float(limit) for name, limit in found.items() if limit is not None}
        if self.artifact_bytes is not None:
            named[ARTIFACTS] = float(self.artifact_bytes)
        return named | {f"{UNITS}{kind}": limit for kind, limit in sorted(self.units.items())}


class OwnerSpec(WrittenValue):
    """Members, quotas and priority of an owner."""

    description: Description = ""
    members: tuple[OwnerMember, ...] | None = Field(default=None, max_length=MOST_MEMBERS)
    """All roles over this owner's models, in place of those that there are; left out: they stay as they are."""
    quotas: OwnerQuotas = OwnerQuotas()
    priority: int = Field(default=0, ge=-HIGHEST_PRIORITY, le=HIGHEST_PRIORITY)
    """If supply is short, demand of an owner with a higher priority is served first. An owner without an object has
    0."""

    @model_validator(mode="after")
    def _names_each_member_once(self) -> Self:
        seen = set()
        for member in self.members or ():
            if member in seen:
                msg = f"members: {member.subject} has the role {member.role.value} twice"
                raise ValueError(msg)
            seen.add(member)
        return self

    @model_serializer(mode="wrap")
    def _without_nothing(self, serialize: SerializerFunctionWrapHandler) -> dict[str, Any]:
        plain: dict[str, Any] = serialize(self)
        return plain if self.members is not None else {k: v for k, v in plain.items() if k != "members"}


class OwnerManifest(WrittenValue):
    """`kind: Owner`. Its name is what models name as `metadata.owner`."""

    api_version: Literal["ipnext/v1"]
    kind: Literal["Owner"]
    metadata: Metadata
    spec: OwnerSpec = OwnerSpec()

    @property
    def name(self) -> str:
        """The owner's name."""
        return self.metadata.name


class QuotaUse(Value):
    """One quota beside what the owner's models ask for."""

    quota: str
    """`models`, `replicas`, `units.KIND`, `dollarsPerHour`, `requestsPerSecond`, `callers` or `artifactBytes`."""
    used: float
    """What the manifests of the models that are not retired add up to, or bytes stored; admission compares this with
    the limit."""
    limit: float | None = None
    """None: no limit."""
    placed: float | None = None
    """What the plan in force gives them: replicas, units, or $/h; None for quotas that no plan has a figure of."""

    @property
    def is_exceeded(self) -> bool:
        """Whether the models use more than the limit, which was lowered after their admission."""
        return self.limit is not None and self.used > self.limit


class OwnerView(WrittenValue):
    """An owner as applied, its members, and its usage beside its limits."""

    manifest: OwnerManifest
    """With the members that there are, whoever granted their roles."""
    version: int
    created_at: datetime
    updated_at: datetime
    usage: tuple[QuotaUse, ...] = ()
    """Every quota that has a limit or a use, by name."""
    models_without_budget: int = 0
    """Models that count 0 $/h, as they were admitted without `spec.budgetPerHour` before there was a quota."""
    fleet_budget_per_hour: float | None = None
    """What the fleet lets plans spend on the owner's models ($/h, `spec.owners` of the fleet); null: no limit."""
    warnings: tuple[str, ...] = ()
    """Quotas below what the models ask for already, in words. Nothing that runs changes for that."""
    dry_run: bool = False
