"""Errors of the API server double, as `Status` documents."""

from collections.abc import Sequence
from typing import Any

Json = dict[str, Any]
REASONS = {
    "Required value": "FieldValueRequired",
    "Unsupported value": "FieldValueNotSupported",
    "Not found": "FieldValueNotFound",
    "Too long": "FieldValueTooLong",
}
"""How a message begins -> why the field is wrong."""


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
        named = {"reason": self.reason, "details": self.details}
        return {
            "kind": "Status",
            "apiVersion": "v1",
            "metadata": {},
            "status": "Failure",
            "message": self.message,
            **{name: each for name, each in named.items() if each},
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


def conflict(plural: str, name: str, why: str, *, group: str = "") -> ApiFailure:
    """Build the error for a write that met another one."""
    message = f'Operation cannot be fulfilled on {_qualified(plural, group)} "{name}": {why}'
    details = {"name": name, "kind": plural, **({"group": group} if group else {})}
    return ApiFailure(409, "Conflict", message, details=details)


def stale(plural: str, name: str, group: str = "") -> ApiFailure:
    """Build the error for a write that names an older resourceVersion."""
    return conflict(plural, name, "the object has been modified; read it again and repeat the change", group=group)


def invalid(kind: str, name: str, causes: Sequence[tuple[str, str]], *, group: str = "") -> ApiFailure:
    """Build the error for an object that breaks rules: (field, message) each."""
    told = [f"{field}: {message}" for field, message in causes]
    text = told[0] if len(told) == 1 else f"[{', '.join(told)}]"
    listed = [{"reason": _reason(message), "message": message, "field": field} for field, message in causes]
    named = {"name": name, "group": group, "kind": kind}
    return ApiFailure(
        422,
        "Invalid",
        f'{_qualified(kind, group)} "{name}" is invalid: {text}',
        details={key: each for key, each in named.items() if each} | {"causes": listed},
    )


def _reason(message: str) -> str:
    return next((reason for start, reason in REASONS.items() if message.startswith(start)), "FieldValueInvalid")


def internal(message: str) -> ApiFailure:
    """Build the error for what the server itself does not handle; it names no reason."""
    return ApiFailure(500, "", message)


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
