"""Requests to one repository of an OCI registry: authorization, redirects, and limits of bytes and time.

The registry is not trusted. Its answers end after a number of bytes and at a time that the caller gives, credentials
go only to the server for which the operator wrote them down, and no other server is read without the operator's leave.
"""

import re
import time
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from functools import cached_property
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Final, NamedTuple
from urllib.parse import unquote, urlsplit

import httpx

from ipnext.artifacts.bounded_json import parse_bounded
from ipnext.components.bounded_http import DeadlineTransport, ending_at
from ipnext.errors import ArtifactMissing, InvalidInput, IPnextError, NotFound, PathNotAllowed, TooLarge, Unavailable
from ipnext.model.manifest.sources import is_loopback
from ipnext.sources.access import ReadAccess

CONNECT_SECONDS: Final = 10.0
SILENCE_SECONDS: Final = 30.0
"""Longest wait for the next bytes of an answer."""
LARGEST_TOKEN_ANSWER: Final = 64 * 2**10
LONGEST_CHALLENGE: Final = 8 * 2**10
MOST_TOKEN_SEPARATORS: Final = 1_000
TOKEN_SECONDS: Final = 60.0
"""Validity of a token whose answer does not name it, as the specification says."""
LONGEST_TOKEN_SECONDS: Final = 3600.0
USED_SHARE: Final = 0.9
"""Of a token's validity; then the next request gets another one."""
SHOWN: Final = 300
"""Characters of a foreign address in a message."""
CREDENTIALS: Final = "IPNEXT_SOURCE_CREDENTIALS_FILE"

_TOKEN: Final = re.compile(r"[A-Za-z0-9._~+/=-]{1,16384}")
_PARAMETER: Final = re.compile(r'([A-Za-z]+)="([^"\\]*)"')
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_PORTS: Final = {"http": 80, "https": 443}


class AddressRefused(Unavailable):
    """An address that the registry names, and that this access may not read."""


class RegistryUrl(NamedTuple):
    """A repository's place. `base` has no path."""

    base: str
    name: str

    @property
    def url(self) -> str:
        """As IPNEXT_SOURCE_URLS and the credentials file name it: https://HOST/NAME, or http:// of loopback."""
        return f"{self.base}/{self.name}"


def parse_repository(repository: str) -> RegistryUrl:
    """Return the place of HOST[:PORT]/NAME. Raises InvalidInput if the port is none."""
    host, _, name = repository.partition("/")
    try:
        parts = urlsplit(f"//{host.lower()}")
        _ = parts.port
    except ValueError as error:
        msg = f"oci.repository: {repository!r} has no port between 0 and 65535"
        raise InvalidInput(msg, field="oci.repository", value=repository) from error
    scheme = "http" if is_loopback(parts.hostname or "") else "https"
    return RegistryUrl(f"{scheme}://{parts.netloc}", name)


class _Token(NamedTuple):
    value: str
    ends_at: float


class Connections:
    """Connections to registries, and the tokens that these gave. Safe to use from several threads."""

    def __init__(self, transport: httpx.BaseTransport | None = None) -> None:
        self._transport = transport
        self.tokens: dict[tuple[str, str, str | None], _Token] = {}
        """By repository, name, and the credentials that the token was given for."""

    @cached_property
    def http(self) -> httpx.Client:
        """The client, made at the first request. It keeps no cookies: streams of several owners share it."""
        return httpx.Client(
            transport=self._transport or DeadlineTransport(httpx.create_ssl_context()),
            cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),
            trust_env=False,
            follow_redirects=False,
        )

    def send(self, method: str, url: httpx.URL, headers: Mapping[str, str], ends_at: float) -> httpx.Response:
        """Send a request, and return the answer before its body, which the caller reads and closes.

        Raises httpx.TransportError.
        """
        sent = {"User-Agent": "ipnext", "Accept-Encoding": "identity", **headers}
        timeout = httpx.Timeout(SILENCE_SECONDS, connect=CONNECT_SECONDS)
        request = self.http.build_request(method, url, headers=sent, timeout=timeout)
        with ending_at(ends_at):
            return self.http.send(request, stream=True)

    def keep(self, key: tuple[str, str, str | None], token: _Token) -> None:
        """Keep a token, and forget those whose time is over."""
        now = time.monotonic()
        self.tokens = {known: value for known, value in self.tokens.items() if value.ends_at > now} | {key: token}


class Repository:
    """A repository, as a stream with this access may read it. Times are of the monotonic clock."""

    def __init__(self, place: RegistryUrl, access: ReadAccess, connections: Connections) -> None:
        self.place = place
        self._access, self._connections = access, connections
        self._base = httpx.URL(place.base)
        authorization = access.authorization_for(place.url)
        self.authorization = authorization.strip() if authorization else None

    def find_header(self, reference: str, accept: str, header: str, ends_at: float) -> str | None:
        """Return a header of a manifest without reading that: one request. Raises NotFound or Unavailable."""
        with self._ask("HEAD", f"manifests/{reference}", {"Accept": accept}, ends_at) as answer:
            self._check(answer, reference, NotFound, 200)
            found: str | None = answer.headers.get(header)
            return found

    def read_manifest(self, reference: str, accept: str, most_bytes: int, ends_at: float) -> bytes:
        """Return the bytes of a manifest, whose digest the caller checks.

        Raises ArtifactMissing, TooLarge or Unavailable.
        """
        with self._ask("GET", f"manifests/{reference}", {"Accept": accept}, ends_at) as answer:
            self._check(answer, reference, ArtifactMissing, 200)
            return self._read(answer, f"the manifest of {self.place.url}@{reference}", most_bytes, ends_at)

    def read_referrers(self, digest: str, kind: str, most_bytes: int, ends_at: float) -> bytes:
        """Return the registry's index, of a media type, of what refers to a manifest.

        Raises ArtifactMissing, also by a registry without such lists, TooLarge or Unavailable.
        """
        with self._ask("GET", f"referrers/{digest}", {"Accept": kind}, ends_at) as answer:
            self._check(answer, f"list of what refers to {digest}", ArtifactMissing, 200)
            if answer.headers.get("content-type", "").partition(";")[0].strip() != kind:
                msg = f"{self.place.url} keeps no list of what refers to {digest}"
                raise ArtifactMissing(msg)
            return self._read(answer, f"what refers to {self.place.url}@{digest}", most_bytes, ends_at)

    def open_blob(self, digest: str, start: int, ends_at: float) -> httpx.Response:
        """Open a blob at a byte; the caller reads and closes it. One redirect to an allowed server is followed.

        Raises ArtifactMissing or Unavailable; httpx.TransportError if the connection breaks.
        """
        headers = {"Range": f"bytes={start}-"} if start else {}
        status = 206 if start else 200
        answer = self._send("GET", f"blobs/{digest}", headers, ends_at)
        try:
            if answer.status_code in _REDIRECTS:
                answer.close()
                answer = self._follow(answer.headers.get("location", ""), headers, status, ends_at)
            else:
                self._check(answer, digest, ArtifactMissing, status)
            self._check_encoding(answer)
        except IPnextError:
            answer.close()
            raise
        return answer

    def _follow(self, location: str, headers: Mapping[str, str], status: int, ends_at: float) -> httpx.Response:
        """Return the answer of the server to which a blob is redirected, which gets no credentials."""
        target = self._join(location, "redirects a blob to")
        answer = self._connections.send("GET", target, headers, ends_at)
        if answer.status_code != status:
            answer.close()
            what = "redirects it once more" if answer.status_code in _REDIRECTS else f"answers {answer.status_code}"
            msg = f"{self.place.url} redirects a blob to {_shown_url(target)!r}, which {what}; {status} is asked for"
            raise Unavailable(msg)
        return answer

    @contextmanager
    def _ask(self, method: str, path: str, headers: Mapping[str, str], ends_at: float) -> Iterator[httpx.Response]:
        """Send a request with authorization. Raises Unavailable, also if the answer breaks off in the block."""
        try:
            with closing(self._send(method, path, headers, ends_at)) as answer:
                yield answer
        except httpx.TransportError as error:
            raise unreachable(self.place.url, error) from error

    def _send(self, method: str, path: str, headers: Mapping[str, str], ends_at: float) -> httpx.Response:
        url = self._base.copy_with(path=f"/v2/{self.place.name}/{path}")
        key = (self.place.base, self.place.name, self.authorization)
        token = self._connections.tokens.get(key)
        fresh = token is not None and token.ends_at > time.monotonic()
        given = f"Bearer {token.value}" if token is not None and fresh else self.authorization
        answer = self._connections.send(method, url, _with_authorization(headers, given), ends_at)
        if answer.status_code != 401:
            return answer
        answer.close()
        token = self._get_token(answer.headers.get("www-authenticate", ""), ends_at)
        self._connections.keep(key, token)
        return self._connections.send(method, url, _with_authorization(headers, f"Bearer {token.value}"), ends_at)

    def _get_token(self, challenge: str, ends_at: float) -> _Token:
        """Return a token for reading this repository. Raises Unavailable.

        A token service of another server than the registry gets only the credentials that the operator wrote down for
        that server, and only a scope of this repository.
        """
        parameters = _parse_challenge(challenge)
        if "realm" not in parameters or (self.authorization and not _is_basic(self.authorization)):
            raise self._refusal(401)
        realm = self._join(parameters["realm"], "names as its token service")
        own = _origin(realm) == _origin(self._base)
        given = self.authorization if own else self._access.authorization_for(_plain_url(realm))
        asked = {name: value for name, value in parameters.items() if name == "service"}
        asked["scope"] = f"repository:{self.place.name}:pull"
        return self._ask_token(realm.copy_merge_params(asked), given if _is_basic(given) else None, ends_at)

    def _ask_token(self, url: httpx.URL, authorization: str | None, ends_at: float) -> _Token:
        service = f"token service {_shown_url(url)}"
        try:
            with closing(self._connections.send("GET", url, _with_authorization({}, authorization), ends_at)) as answer:
                if answer.status_code != 200:
                    msg = f"{service} answers {answer.status_code}; its credentials are in {CREDENTIALS}, by URL"
                    raise Unavailable(msg)
                content = self._read(answer, f"the answer of {service}", LARGEST_TOKEN_ANSWER, ends_at)
        except httpx.TransportError as error:
            raise unreachable(service, error) from error
        except TooLarge as error:
            raise Unavailable(error.message) from error
        return _read_token(content, service)

    def _join(self, address: str, does: str) -> httpx.URL:
        """Return an address that the registry names, if it may be read. Raises AddressRefused."""
        try:
            url = self._base.join(address)
        except (httpx.InvalidURL, ValueError):
            url = httpx.URL("")
        if not address or not url.host:
            msg = f"{self.place.url} {does} an address that is none"
            raise AddressRefused(msg)
        if not self._may_read(url):
            msg = (
                f"{self.place.url} {does} {_shown_url(url)!r}, which may not be read: it has to be https, "
                "and of the registry's own server or of a URL in IPNEXT_SOURCE_URLS"
            )
            raise AddressRefused(msg)
        return url

    def _may_read(self, url: httpx.URL) -> bool:
        """Return whether an address that the registry names may be read: its own server, or what the access allows."""
        local = is_loopback(url.host) and is_loopback(self._base.host)
        if url.userinfo or not (url.scheme == "https" or (url.scheme == "http" and local)):
            return False
        return _origin(url) == _origin(self._base) or self._is_allowed(url)

    def _is_allowed(self, url: httpx.URL) -> bool:
        text = _plain_url(url)
        try:
            for form in (text, unquote(text)):  # servers differ in the form by which they find a file
                self._access.check_url(form)
        except PathNotAllowed:
            return False
        return True

    def _check(self, answer: httpx.Response, reference: str, missing: type[IPnextError], status: int) -> None:
        if answer.status_code == status:
            return
        if answer.status_code in {401, 403}:
            raise self._refusal(answer.status_code)
        if answer.status_code == 404:
            msg = f"{self.place.url} has no {reference}"
            raise missing(msg)
        if answer.status_code in _REDIRECTS:
            msg = f"{self.place.url} redirects {reference} elsewhere, which is not followed"
            raise Unavailable(msg)
        msg = f"{self.place.url} answers {answer.status_code} for {reference}; {status} is asked for"
        raise Unavailable(msg)

    def _check_encoding(self, answer: httpx.Response) -> None:
        packing = answer.headers.get("content-encoding", "identity").strip().lower()
        if packing not in {"", "identity"}:
            msg = f"{self.place.url} sends packed content ({packing[:40]!r}), which was not asked for"
            raise Unavailable(msg)

    def _read(self, answer: httpx.Response, subject: str, most_bytes: int, ends_at: float) -> bytes:
        self._check_encoding(answer)
        content = bytearray()
        with ending_at(ends_at):
            for chunk in answer.iter_raw():
                content += chunk
                if len(content) > most_bytes:
                    msg = f"{subject} is too large; allowed: {most_bytes} bytes"
                    raise TooLarge(msg)
                if time.monotonic() > ends_at:
                    msg = f"{subject} comes too slowly"
                    raise Unavailable(msg)
        return bytes(content)

    def _refusal(self, status: int) -> Unavailable:
        has = "refuses the credentials" if self.authorization else "asks for credentials, and there are none"
        return Unavailable(f"{self.place.url} {has} ({status}); they are in {CREDENTIALS}, by URL")


def unreachable(subject: str, error: httpx.TransportError) -> Unavailable:
    """Return the error for a connection that could not be made or broke."""
    if isinstance(error, httpx.TimeoutException):
        return Unavailable(f"{subject} does not answer in time")
    if isinstance(error, httpx.ConnectError):
        return Unavailable(f"{subject} can't be reached: {str(error)[:SHOWN]}")
    return Unavailable(f"{subject} breaks off its answer ({type(error).__name__})")


def _parse_challenge(text: str) -> dict[str, str]:
    """Return the parameters of the header WWW-Authenticate; none of another scheme than Bearer."""
    scheme, _, rest = text[:LONGEST_CHALLENGE].partition(" ")
    return dict(_PARAMETER.findall(rest)) if scheme.lower() == "bearer" else {}


def _is_basic(authorization: str | None) -> bool:
    return authorization is not None and authorization.lower().startswith("basic ")


def _with_authorization(headers: Mapping[str, str], value: str | None) -> Mapping[str, str]:
    return {**headers, "Authorization": value} if value else headers


def _read_token(content: bytes, service: str) -> _Token:
    try:
        found = parse_bounded(content, most_separators=MOST_TOKEN_SEPARATORS)
    except InvalidInput as error:
        msg = f"the answer of {service} {error.message}"
        raise Unavailable(msg) from None
    fields = found if isinstance(found, dict) else {}
    token = fields.get("token") or fields.get("access_token")
    if not isinstance(token, str) or not _TOKEN.fullmatch(token):
        msg = f"the answer of {service} has no token"
        raise Unavailable(msg)
    seconds = fields.get("expires_in")
    valid = seconds if isinstance(seconds, int | float) and seconds > 0 else TOKEN_SECONDS
    return _Token(token, time.monotonic() + USED_SHARE * min(valid, LONGEST_TOKEN_SECONDS))


def _origin(url: httpx.URL) -> tuple[str, str, int | None]:
    return url.scheme, url.host, url.port or _PORTS.get(url.scheme)


def _plain_url(url: httpx.URL) -> str:
    """Return an address without its query, which may be a signature."""
    host = url.netloc.decode("ascii", "replace").rpartition("@")[2]
    return f"{url.scheme}://{host}{url.raw_path.decode('ascii', 'replace').partition('?')[0]}"


def _shown_url(url: httpx.URL) -> str:
    return _plain_url(url)[:SHOWN]
