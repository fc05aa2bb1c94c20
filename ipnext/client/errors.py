"""Translation of an answer of the API, or of none, into the error tree."""

from collections.abc import Mapping

import httpx
from pydantic import ValidationError

from ipnext.errors import DeadlineExceeded, Forbidden, Infeasible, InvalidInput, IPnextError, Unavailable
from ipnext.model.api.resources import ErrorBody
from ipnext.model.wire import decode


def no_answer(url: str, error: httpx.TransportError) -> IPnextError:
    """Return Unavailable, or DeadlineExceeded if the API accepted the request and did not answer."""
    if isinstance(error, httpx.TimeoutException) and not isinstance(error, httpx.ConnectTimeout):
        return DeadlineExceeded(f"the API at {url} did not answer in time; raise IPNEXT_TIMEOUT_SECONDS or try again")
    why = str(error) or type(error).__name__
    return Unavailable(f"no API answers at {url} ({why}); start one with `ipnext dev`, or set IPNEXT_API_URL")


def error_of(answer: httpx.Response, url: str) -> IPnextError:
    """Return the error of an answer. If the answer is not from IPnext, the error names the URL."""
    try:
        body = decode(ErrorBody, answer.content)
    except ValidationError:
        msg = f"{url} answered {answer.status_code} without an IPnext error; is it an IPnext API?"
        return Unavailable(msg) if answer.status_code in {502, 503, 504} else IPnextError(msg)
    kind = _kinds().get(body.code, IPnextError)
    if issubclass(kind, InvalidInput):
        return kind(body.message, field=body.field, value=body.value, allowed=body.allowed or ())
    if issubclass(kind, Forbidden):
        return kind(body.message, policy=body.policy)
    if issubclass(kind, Infeasible):
        return kind(body.message, rules=body.rules or ())
    return kind(body.message)


def _kinds() -> Mapping[str, type[IPnextError]]:
    """Return every class of the tree by its code."""
    found: list[type[IPnextError]] = [IPnextError]
    for kind in found:
        found.extend(kind.__subclasses__())
    return {kind.code: kind for kind in found}
