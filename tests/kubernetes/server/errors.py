"""Errors of the API server double, as `Status` documents."""

from collections.abc import Sequence
from typing import Any

Json = dict[str, Any]


class ApiFailure(Exception):
    """A request that fails with an HTTP status, a reason of Kubernetes and a message."""

    def __init__(
        self, code: int, reason: str, message: str, *, details: Json | None = None, headers: Json | None = None
    ) -> None:
        super().__init__(message)
        self.code, self.reason, self.message = code, reason, message
        self.details, self.headers = details or {}, headers or {}

    def status(self) -> Json:
        """Return the document that the client gets."""
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            "reason": self.reason,
            "details": self.details,
            "code": self.code,
        }


def not_found(plural: str, name: str, group: str = "") -> ApiFailure:
    """Build the error for an object that does not exist."""
    details = {"name": name, "kind": plural, **({"group": group} if group else {})}
    return ApiFailure(404, "NotFound", f'{_qualified(plural, group)} "{name}" not found', details=details)


def already_exists(plural: str, name: str, group: str = "") -> ApiFailure:
    """Build the error for a name that is taken."""
    return ApiFailure(
        409,
        "AlreadyExists",
        f'{_qualified(plural, group)} "{name}" already exists',
        details={"name": name, "kind": plural, **({"group": group} if group else {})},
    )


def conflict(plural: str, name: str, why: str, *, causes: Sequence[Json] = ()) -> ApiFailure:
    """Build the error for a write that met another one."""
    message = why if causes else f'Operation cannot be fulfilled on {plural} "{name}": {why}'
    details = {"name": name, "kind": plural, **({"causes": list(causes)} if causes else {})}
    return ApiFailure(409, "Conflict", message, details=details)


def stale(plural: str, name: str) -> ApiFailure:
    """Build the error for a write that names an older resourceVersion."""
    return conflict(plural, name, "the object has been modified; read it again and repeat the change")


def invalid(kind: str, name: str, causes: Sequence[tuple[str, str]]) -> ApiFailure:
    """Build the error for an object that breaks rules: (field, message) each."""
    text = ", ".join(f"{field}: {message}" for field, message in causes)
    listed = [{"reason": "FieldValueInvalid", "message": message, "field": field} for field, message in causes]
    return ApiFailure(
        422,
        "Invalid",
        f'{kind} "{name}" is invalid: {text}',
        details={"name": name, "kind": kind, "causes": listed},
    )


def bad_request(message: str) -> ApiFailure:
    """Build the error for a request that cannot be understood."""
    return ApiFailure(400, "BadRequest", message)


def expired(message: str = "the requested resourceVersion is too old") -> ApiFailure:
    """Build the error for a version whose events or pages are gone: list again."""
    return ApiFailure(410, "Expired", message)


def forbidden(message: str) -> ApiFailure:
    """Build the error for a user who may not do this."""
    return ApiFailure(403, "Forbidden", message)


def unauthorized() -> ApiFailure:
    """Build the error for a request without a valid token."""
    return ApiFailure(401, "Unauthorized", "Unauthorized")


def too_many_requests(message: str, *, retry_after_seconds: int = 1, causes: Sequence[Json] = ()) -> ApiFailure:
    """Build the error for a request to repeat later."""
    details = {"retryAfterSeconds": retry_after_seconds, "causes": list(causes)}
    headers = {"Retry-After": str(retry_after_seconds)}
    return ApiFailure(429, "TooManyRequests", message, details=details, headers=headers)


def not_allowed(method: str) -> ApiFailure:
    """Build the error for a method that the resource does not have."""
    return ApiFailure(405, "MethodNotAllowed", f"{method} is not supported on this resource")


def _qualified(plural: str, group: str) -> str:
    return f"{plural}.{group}" if group else plural
