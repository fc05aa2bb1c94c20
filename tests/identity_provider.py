"""A small OpenID Connect provider for tests: real keys, discovery, key rotation, device flow, renewal, revocation.

It listens on loopback, in a thread of its own. Tests steer it by its attributes.
"""

import asyncio
import secrets
import threading
import time
from collections import Counter
from collections.abc import Mapping
from typing import Any

from aiohttp import web
from joserfc import jwk, jws, jwt

from tests.waiting import PATIENCE_SECONDS

AUDIENCE = "ipnext-api"
CLIENT_ID = "ipnext-cli"

Key = jwk.RSAKey | jwk.ECKey | jwk.OKPKey


def rsa_key(kid: str) -> jwk.RSAKey:
    return jwk.RSAKey.generate_key(2048, {"kid": kid})


def ec_key(kid: str, curve: str = "P-256") -> jwk.ECKey:
    return jwk.ECKey.generate_key(curve, {"kid": kid})


class Signer:
    """Signs tokens of one person, `ann`, and listens nowhere."""

    issuer = "http://127.0.0.1:1/realms/shop"

    def __init__(self, key: Key) -> None:
        self.key = key
        self.claims: dict[str, Any] = {"preferred_username": "ann", "groups": ["search-team"]}
        """Claims of tokens that it gives out."""
        self.lasts_seconds = 600

    def token(self, *, key: Key | None = None, header: Mapping[str, Any] | None = None, **claims: Any) -> str:
        """A token that proves ann, with these changes; a claim that is None is left out."""
        key, now = key or self.key, int(time.time())
        algorithm = {"RSA": "RS256", "EC": "ES256", "OKP": "Ed25519"}[key.key_type]
        of = {"iss": self.issuer, "aud": AUDIENCE, "sub": "1234", "iat": now, "exp": now + self.lasts_seconds}
        found = {name: value for name, value in (of | self.claims | claims).items() if value is not None}
        given = {"alg": algorithm, "kid": key.kid} | dict(header or {})
        registry = jws.JWSRegistry(algorithms=[given["alg"]], strict_check_header=False)
        registry.max_header_length = 10**6
        registry.max_payload_length = 10**6
        return jwt.encode({k: v for k, v in given.items() if v is not None}, found, key, registry=registry)


class Provider(Signer):
    """One provider with one person, `ann`."""

    def __init__(self, key: Key) -> None:
        super().__init__(key)
        self.published: list[Mapping[str, Any]] = [key.as_dict(private=False)]
        """Keys of the key set."""
        self.device_answers: list[str] = []
        """Errors that polls get, in this order, before the person has agreed."""
        self.changed_discovery: dict[str, Any] = {}
        """Overrides of the discovery document; None removes a name."""
        self.replaced: dict[str, tuple[int, dict[str, str], bytes]] = {}
        """Last part of a path -> status, headers and body of the answer, in place of its own."""
        self.away = False
        """Whether it ends each connection without an answer."""
        self.gate: threading.Event | None = None
        """If set: answers wait for it."""
        self.asked: Counter[str] = Counter()
        self.forms: list[tuple[str, dict[str, str]]] = []
        self.refresh_tokens: set[str] = set()
        self.revoked: list[str] = []
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_forever, name="identity-provider")
        self._runner: web.AppRunner | None = None
        self.port = 0

    # life

    def start(self) -> "Provider":
        self._thread.start()
        self._wait(self._listen())
        return self

    def stop(self) -> None:
        assert self._runner is not None
        self._wait(self._runner.cleanup())
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join(PATIENCE_SECONDS)
        self._loop.close()

    @property
    def issuer(self) -> str:  # type: ignore[override]  # it has a port once it listens
        return f"http://127.0.0.1:{self.port}/realms/shop"

    async def _listen(self) -> None:
        app = web.Application(middlewares=[self._middleware])
        app.router.add_get("/realms/shop/.well-known/openid-configuration", self._discovery)
        app.router.add_get("/realms/shop/keys", self._keys)
        app.router.add_post("/realms/shop/device", self._device)
        app.router.add_post("/realms/shop/token", self._token)
        app.router.add_post("/realms/shop/revoke", self._revoke)
        self._runner = web.AppRunner(app, access_log=None)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", 0)
        await site.start()
        self.port = self._runner.addresses[0][1]

    def _wait(self, work: Any) -> None:
        asyncio.run_coroutine_threadsafe(work, self._loop).result(PATIENCE_SECONDS)

    # tokens

    def rotate(self, key: Key, *, keep: bool = False) -> None:
        """Sign by another key from now on."""
        self.key = key
        self.published = [key.as_dict(private=False), *(self.published if keep else ())]

    # endpoints

    @web.middleware
    async def _middleware(self, request: web.Request, handler: Any) -> web.StreamResponse:
        name = request.path.rsplit("/", 1)[-1]
        self.asked[name] += 1
        if self.gate is not None:
            await asyncio.get_running_loop().run_in_executor(None, self.gate.wait, PATIENCE_SECONDS)
        if self.away:
            assert request.transport is not None
            request.transport.abort()
        if request.method == "POST":
            self.forms.append((name, {k: str(v) for k, v in (await request.post()).items()}))
        if name in self.replaced:
            status, headers, body = self.replaced[name]
            return web.Response(status=status, headers=headers, body=body)
        return await handler(request)

    async def _discovery(self, _: web.Request) -> web.Response:
        found = {
            "issuer": self.issuer,
            "jwks_uri": f"{self.issuer}/keys",
            "token_endpoint": f"{self.issuer}/token",
            "device_authorization_endpoint": f"{self.issuer}/device",
            "revocation_endpoint": f"{self.issuer}/revoke",
        } | self.changed_discovery
        return web.json_response({name: value for name, value in found.items() if value is not None})

    async def _keys(self, _: web.Request) -> web.Response:
        return web.json_response({"keys": list(self.published)})

    async def _device(self, _: web.Request) -> web.Response:
        return web.json_response(
            {
                "device_code": "the-device-code",
                "user_code": "WDJB-MJHT",
                "verification_uri": f"{self.issuer}/activate",
                "verification_uri_complete": f"{self.issuer}/activate?code=WDJB-MJHT",
                "expires_in": 900,
                "interval": 5,
            }
        )

    async def _token(self, _: web.Request) -> web.Response:
        form = self.forms[-1][1]
        if form.get("client_id") != CLIENT_ID:
            return _refused("invalid_client")
        if form["grant_type"] == "refresh_token":
            if form["refresh_token"] not in self.refresh_tokens:
                return _refused("invalid_grant")
            self.refresh_tokens.discard(form["refresh_token"])  # each is good once
        elif form.get("device_code") != "the-device-code":
            return _refused("invalid_grant")
        elif self.device_answers:
            return _refused(self.device_answers.pop(0))
        refresh = secrets.token_urlsafe(16)
        self.refresh_tokens.add(refresh)
        return web.json_response(
            {
                "access_token": self.token(jti=secrets.token_hex(4)),
                "refresh_token": refresh,
                "token_type": "Bearer",
                "expires_in": self.lasts_seconds,
            }
        )

    async def _revoke(self, _: web.Request) -> web.Response:
        token = self.forms[-1][1]["token"]
        self.refresh_tokens.discard(token)
        self.revoked.append(token)
        return web.Response()


def _refused(error: str) -> web.Response:
    return web.json_response({"error": error, "error_description": f"{error}: so it is"}, status=400)
