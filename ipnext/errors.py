"""The one error tree. Every error says what was given, what is allowed, and what to do.

IPnextError
├── InvalidInput            400  a field, its value and what is allowed
│   ├── PathNotAllowed      403  a file outside the allowed roots
│   ├── UnsupportedModel    422  a module that cannot be exported
│   ├── TooLarge            413  a body beyond the server's limit
│   ├── TooSlow             408  a request that does not come whole in time
│   ├── QuotaExceeded       409  more than an owner's quota has left
│   ├── MisdirectedRequest  421  a `Host` that a listener does not serve
│   └── ForeignOrigin       403  a page of another origin asks
├── Unauthenticated         401  no credential, or one that proves nothing
├── Forbidden               403  the principal may not; the policy that decided is named
├── NotFound                404
├── Conflict                409
│   ├── StaleWrite          409  the expected version is not the current one
│   └── DuplicateSnapshot   409  the same bytes are published already
├── FenceLost               409  a run that is no longer the one that moves its model
├── ArtifactError           422
│   ├── ArtifactMissing     422
│   ├── ArtifactDigestMismatch  422
│   ├── SignatureInvalid    422  no signature, or none by a key that is allowed
│   └── SnapshotDenied      422  a digest that an administrator denied
├── Infeasible              422  no plan or transition keeps the rules; the binding ones are named
├── LoadFailed              500  a host could not load a snapshot
├── MemoryExceeded          507  a host's memory budget has no room for a snapshot
├── GenerationNotHeld       409  a host does not hold the asked generation
├── QueryOfDeath            500  a request that ended its host twice
├── AnswerTooLarge          502  a host or engine answers with more bytes than are kept
├── RateLimited             429  the caller asks more often than its limit
├── Unavailable             503  a dependency is down or full; try again
│   ├── RegionUnreachable   503  the infrastructure of a region does not answer
│   ├── InsufficientStorage 507  a disk would keep less than its reserve
│   ├── RouteFailed         503  a gateway did not take its routes
│   ├── HostLost            503  the host of a request ended, and no other one is asked
│   └── EngineRefused       503  Temporal refuses a call, for a reason that is not the change's own
└── DeadlineExceeded        504
"""

from collections.abc import Sequence
from typing import ClassVar

EXIT_OK = 0
EXIT_FAILURE = 1
EXIT_BAD_INPUT = 2
EXIT_INFEASIBLE = 3


class IPnextError(Exception):
    """Root of the tree. `code` is stable; `http_status` and `retryable` guide a client's reaction."""

    code: ClassVar[str] = "InternalError"
    http_status: ClassVar[int] = 500
    retryable: ClassVar[bool] = False
    exit_status: ClassVar[int] = EXIT_FAILURE

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.message = message


class InvalidInput(IPnextError):
    """Input that breaks its contract: names the field, the value given and the allowed values."""

    code = "InvalidInput"
    http_status = 400
    exit_status = EXIT_BAD_INPUT

    def __init__(
        self,
        message: str,
        *,
        field: str | None = None,
        value: object = None,
        allowed: Sequence[str] = (),
    ) -> None:
        super().__init__(message)
        self.field = field
        self.value = value
        self.allowed = tuple(allowed)


class PathNotAllowed(InvalidInput):
    """A file:// source outside the roots that the server may read."""

    code = "PathNotAllowed"
    http_status = 403
    public_message: str | None = None
    """Message for principals that may not know the server's directories; None: `message`."""

    @property
    def public(self) -> "PathNotAllowed":
        """The same error without the allowed values."""
        return PathNotAllowed(self.public_message or self.message, field=self.field, value=self.value)


class UnsupportedModel(InvalidInput):
    """A module that cannot become a snapshot; the message names the line of the user's model."""

    code = "UnsupportedModel"
    http_status = 422


class TooLarge(InvalidInput):
    """A body beyond the limit; the message names the setting that raises it."""

    code = "TooLarge"
    http_status = 413


class TooSlow(InvalidInput):
    """A request that the client began and does not finish in time."""

    code = "TooSlow"
    http_status = 408


class QuotaExceeded(InvalidInput):
    """A manifest, upload or publish that would exceed a quota of its owner.

    The message names the figure used and the limit.
    """

    code = "QuotaExceeded"
    http_status = 409


class MisdirectedRequest(InvalidInput):
    """A request whose `Host` is neither a loopback address nor a configured name."""

    code = "MisdirectedRequest"
    http_status = 421


class ForeignOrigin(InvalidInput):
    """A request that a page of another origin makes in a browser."""

    code = "ForeignOrigin"
    http_status = 403


class Unauthenticated(IPnextError):
    """A request without a credential, or with one that is unknown, expired or revoked."""

    code = "Unauthenticated"
    http_status = 401
    exit_status = EXIT_BAD_INPUT

    def __init__(self, message: str, *, ended: object = None) -> None:
        """Refuse a credential; `ended` is the principal of a correct one that has expired or was revoked."""
        super().__init__(message)
        self.ended = ended


class Forbidden(IPnextError):
    """An action that the principal may not take; `policy` decided."""

    code = "Forbidden"
    http_status = 403
    exit_status = EXIT_BAD_INPUT

    def __init__(self, message: str, *, policy: str | None = None) -> None:
        super().__init__(message)
        self.policy = policy


class NotFound(IPnextError):
    """No such model, snapshot, generation, plan or region."""

    code = "NotFound"
    http_status = 404
    exit_status = EXIT_BAD_INPUT


class Conflict(IPnextError):
    """A write that does not fit the present state."""

    code = "Conflict"
    http_status = 409
    exit_status = EXIT_BAD_INPUT


class StaleWrite(Conflict):
    """The expected version is not the current one: read again, then write."""

    code = "StaleWrite"


class DuplicateSnapshot(Conflict):
    """The same bytes are already a snapshot of this part."""

    code = "DuplicateSnapshot"


class FenceLost(IPnextError):
    """A run writes although its change has ended, or another run has taken its transition over.

    Trying again is no use.
    """

    code = "FenceLost"
    http_status = 409
    exit_status = EXIT_BAD_INPUT


class ArtifactError(IPnextError):
    """An artifact that cannot be used as it lies."""

    code = "ArtifactError"
    http_status = 422
    exit_status = EXIT_BAD_INPUT


class ArtifactMissing(ArtifactError):
    """A file that the manifest names is missing."""

    code = "ArtifactMissing"


class ArtifactDigestMismatch(ArtifactError):
    """A file's SHA-256 differs from its manifest."""

    code = "ArtifactDigestMismatch"
    public_message: str | None = None
    """Message for principals that may not know what the server's files contain; None: `message`."""

    @property
    def public(self) -> "ArtifactDigestMismatch":
        """The same error without size and digest of the file that was found."""
        return ArtifactDigestMismatch(self.public_message or self.message)


class SignatureInvalid(ArtifactError):
    """A snapshot without the signature that its model's manifest requires, or with one of another snapshot."""

    code = "SignatureInvalid"


class SnapshotDenied(ArtifactError):
    """A snapshot that is, has or comes from a digest that an administrator denied."""

    code = "SnapshotDenied"


class Infeasible(IPnextError):
    """No solution keeps every rule. `rules` names the binding ones."""

    code = "Infeasible"
    http_status = 422
    exit_status = EXIT_INFEASIBLE

    def __init__(self, message: str, *, rules: Sequence[str] = ()) -> None:
        super().__init__(message)
        self.rules = tuple(rules)


class LoadFailed(IPnextError):
    """A host could not load a snapshot."""

    code = "LoadFailed"


class MemoryExceeded(IPnextError):
    """A host's memory budget has no room for a snapshot now; in bytes. Loaded snapshots keep serving."""

    code = "MemoryExceeded"
    http_status = 507
    retryable = True

    def __init__(self, message: str, *, needed: int = 0, used: int = 0, budget: int = 0) -> None:
        super().__init__(message)
        self.needed = needed
        self.used = used
        self.budget = budget


class GenerationNotHeld(Conflict):
    """The host does not have this generation; retry the whole request at another one."""

    code = "GenerationNotHeld"
    retryable = True


class RateLimited(IPnextError):
    """The caller exceeds its rate limit; it may retry after `seconds`, if it is alone."""

    code = "RateLimited"
    http_status = 429
    retryable = True

    def __init__(self, message: str, *, seconds: float = 1.0) -> None:
        super().__init__(message)
        self.seconds = seconds


class Unavailable(IPnextError):
    """A dependency is down or full. A later retry helps."""

    code = "Unavailable"
    http_status = 503
    retryable = True


class RegionUnreachable(Unavailable):
    """The infrastructure of a region does not answer."""

    code = "RegionUnreachable"


class InsufficientStorage(Unavailable):
    """A write that would leave a disk less free space than its reserve; the message names both, and the setting."""

    code = "InsufficientStorage"
    http_status = 507


class RouteFailed(Unavailable):
    """A region answers, but its gateway did not apply its routes."""

    code = "RouteFailed"


class HostLost(Unavailable):
    """The host or engine ended during the request, perhaps because of it: the request is not retried at another one."""

    code = "HostLost"


class QueryOfDeath(IPnextError):
    """The request ended its host, and again at the retry. Another retry would end it a third time."""

    code = "QueryOfDeath"


class AnswerTooLarge(IPnextError):
    """An answer of a host, engine or agent that exceeds the caller's limit; the message names limit and setting."""

    code = "AnswerTooLarge"
    http_status = 502


class EngineRefused(Unavailable):
    """Temporal, or a worker of another build, refuses a call for a reason that an operator can remove.

    Nothing is lost.
    """

    code = "EngineRefused"


class DeadlineExceeded(IPnextError):
    """The caller's deadline passed first."""

    code = "DeadlineExceeded"
    http_status = 504
    retryable = True
