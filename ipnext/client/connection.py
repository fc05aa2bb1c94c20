"""Connection to the API: requests, repetition, answers and their errors."""

import ssl
from collections.abc import Mapping
from typing import Any, Self, TypeVar
from urllib.parse import urlsplit

import httpx
import stamina

from ipnext.client.credential import Credential
from ipnext.client.errors import error_of, no_answer
from ipnext.client.lists import Listing, params_of
from ipnext.client.user import header_of, system_user
from ipnext.errors import Unavailable
from ipnext.model.api.resources import ListPage
from ipnext.model.value import Value, WrittenValue
from ipnext.model.wire import decode
from ipnext.names import IDEMPOTENCY_HEADER, USER_HEADER
from ipnext.network.loopback import is_loopback
from ipnext.settings import client_settings

T = TypeVar("T")


class Connection:
    """Connection to one API. Safe to use from several threads; close it, or use it as a context manager."""

    def __init__(
        self,
        base_url: str | None = None,
        timeout_seconds: float | None = None,
        transport: httpx.BaseTransport | None = None,
        *,
        user: str | None = None,
        api_key: str | None = None,
    ) -> None:
        """Connect to the API at `base_url`.

        `timeout_seconds` limits one answer, waiting for a rollout has its own limit.

        The defaults are IPNEXT_API_URL (http://127.0.0.1:8700) and IPNEXT_TIMEOUT_SECONDS (30), as for the CLI.
        InvalidInput names a variable with an invalid value. `user` is recorded in the audit; default IPNEXT_USER, or
        the user of the system. `api_key` is a key or token; default IPNEXT_API_KEY, or the credential that `ipnext dev`
        or `ipnext login` stored for this address.
        """
        settings = client_settings()
        base_url = str(settings.api_url) if base_url is None else base_url
        timeout_seconds = settings.timeout_seconds if timeout_seconds is None else timeout_seconds
        user = user or settings.user
        self._credential = Credential(str(base_url), given=api_key, settings=settings)
        self.trusted: ssl.SSLContext | bool = (
            True if settings.ca_file is None else ssl.create_default_context(cafile=str(settings.ca_file))
        )
        """CA certificates by which API and gateways are verified."""
        self._url = str(base_url).rstrip("/")
        loopback = is_loopback(urlsplit(self._url).hostname or "")
        self._http = httpx.Client(
            base_url=self._url,
            timeout=httpx.Timeout(timeout_seconds, connect=min(5.0, timeout_seconds)),
            transport=transport,
            headers={USER_HEADER: header_of(user or system_user())},
            auth=self._credential,
            verify=self.trusted,
            trust_env=not loopback,  # a proxy from the environment can't reach this machine's loopback
        )
        self._retry = stamina.RetryingCaller(attempts=4, wait_initial=0.1, wait_max=1.0, wait_jitter=0.1, timeout=None)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Close all connections."""
        self._http.close()

    def _list(
        self, path: str, kind: type[T], limit: int | None, *, after: str | None = None, **params: Any
    ) -> Listing[T]:
        def page(size: int, following: str | None) -> ListPage[T]:
            given = params_of(limit=size, after=following or after, **params)
            return self._get(path, ListPage[kind], **given)  # type: ignore[valid-type]

        return Listing(page, limit)

    def _get(self, path: str, kind: type[T], **params: Any) -> T:
        return self._call("GET", path, kind, params=params)

    def _put(self, path: str, body: Value | WrittenValue, kind: type[T], *, params: Mapping[str, Any]) -> T:
        return self._call("PUT", path, kind, body=body, params=params)

    def _call(  # noqa: PLR0913 - the options of one call
        self,
        method: str,
        path: str,
        kind: type[T],
        *,
        body: Value | WrittenValue | None = None,
        params: Mapping[str, Any] | None = None,
        repeatable: bool = True,
        key: str | None = None,
    ) -> T:
        content = None if body is None else body.model_dump_json(by_alias=True, exclude_none=True).encode()
        headers = {} if content is None else {"content-type": "application/json"}
        if key is not None:
            headers[IDEMPOTENCY_HEADER] = key
        options = {"content": content, "headers": headers, "params": params}
        if repeatable:
            answer = self._retry(Unavailable, self._send, method, path, **options)
        else:
            answer = self._send(method, path, **options)
        return decode(kind, answer)

    def _send(self, method: str, path: str, **options: Any) -> bytes:
        try:
            answer = self._http.request(method, path, **options)
        except httpx.TransportError as error:
            raise no_answer(self._url, error) from error
        if answer.is_error:
            raise error_of(answer, self._url)
        return answer.content
