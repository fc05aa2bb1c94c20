"""The OpenAPI schema of the API: every answer of an endpoint, and the credential that it requires."""

from typing import Any, Final

from fastapi import FastAPI

from ipnext.api.authorization.authentication import is_public
from ipnext.api.requests.guarded_route import SAFE_METHODS
from ipnext.model.api.resources import ErrorBody, Readiness

Responses = dict[int | str, dict[str, Any]]
"""Status -> answer, in FastAPI's form."""


def _error(description: str) -> dict[str, Any]:
    return {"model": ErrorBody, "description": description}


ERRORS: Final[Responses] = {
    400: _error("InvalidInput: the field, the value given, what is allowed"),
    401: _error("Unauthenticated: no valid credential"),
    403: _error("Forbidden: `policy` names the policy that decided. ForeignOrigin: a page of another origin asks"),
    404: _error("NotFound"),
    409: _error("Conflict, StaleWrite, DuplicateSnapshot or QuotaExceeded"),
    421: _error("MisdirectedRequest: `Host` is not a name of this server"),
    503: _error("Unavailable: try again"),
}
"""Of every endpoint below `/v1`, and of the metrics."""

OF_PROBES: Final[Responses] = {status: ERRORS[status] for status in (400, 403, 421)}
"""Of endpoints that need no credential: they too check `Host` and the origin."""

NOT_MODIFIED: Final[Responses] = {
    304: {"description": "Nothing has changed since the answer that `If-None-Match` names"}
}
"""Of endpoints whose answers are shared by all callers (`ipnext.api.requests.shared_answers`)."""

OF_ARTIFACTS: Final[Responses] = {
    507: _error("InsufficientStorage: the artifact store's disk would be left with less than its reserve"),
    422: _error(
        "ArtifactMissing, ArtifactDigestMismatch, SignatureInvalid or SnapshotDenied: an artifact that cannot be used"
    ),
}
OF_SHARED: Final[Responses] = {429: _error("RateLimited: the key or person has its share of these open")}
OF_UPLOADS: Final[Responses] = {408: _error("TooSlow: the body comes too slowly"), **OF_SHARED}
UNREADY: Final[Responses] = {
    503: {
        "model": Readiness,
        "description": "The store does not answer, or is another platform's, or other settings of access are in force",
    }
}

TOO_LARGE: Final = {
    "description": "TooLarge: the body is larger than the limit, which the message names",
    "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{ErrorBody.__name__}"}}},
}
"""Of every endpoint that accepts a body."""

TOO_MANY_ENTRIES: Final = {
    "description": "RateLimited: the key or person has caused as many entries of the audit as it may",
    "content": {"application/json": {"schema": {"$ref": f"#/components/schemas/{ErrorBody.__name__}"}}},
}
"""Of every endpoint that may change something."""

BEARER: Final = "bearer"
_SCHEME: Final = {
    "type": "http",
    "scheme": "bearer",
    "description": (
        "An API key (`ipnext_ID.SECRET`), or a token of the identity provider. The page uses a cookie instead."
    ),
}


class Api(FastAPI):
    """FastAPI with a correct schema of errors: invalid requests are 400 with an ErrorBody, never 422."""

    def openapi(self) -> dict[str, Any]:
        """Return the schema with the answers that this application gives, and without those that it never gives."""
        if self.openapi_schema is not None:
            return self.openapi_schema
        schema = super().openapi()
        for path, operations in schema["paths"].items():
            for method, operation in operations.items():
                _correct(
                    operation, needs_credential=not is_public(path), leaves_entry=method.upper() not in SAFE_METHODS
                )
        for unused in ("HTTPValidationError", "ValidationError"):
            schema.get("components", {}).get("schemas", {}).pop(unused, None)
        schema["components"]["securitySchemes"] = {BEARER: _SCHEME}
        return schema


def _correct(operation: dict[str, Any], *, needs_credential: bool, leaves_entry: bool) -> None:
    responses = operation["responses"]
    if "HTTPValidationError" in str(responses.get("422", {})):
        del responses["422"]
    if "requestBody" in operation:
        responses["413"] = TOO_LARGE
    if leaves_entry:
        responses.setdefault("429", TOO_MANY_ENTRIES)
    if needs_credential:
        operation["security"] = [{BEARER: []}]
