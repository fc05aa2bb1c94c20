"""Tokens of people: whom they prove, and which ones prove nobody."""

import base64
import hashlib
import hmac
import json
import time

import pytest

from ipnext.access.oidc import LEEWAY_SECONDS
from ipnext.model.access.predictions import (
    CallerRole,
)
from ipnext.model.access.rights import Grant, Role
from tests.identity_provider import AUDIENCE, Signer
from tests.serving.access.world import KEY, OTHER


def test_a_person_may_ask_by_the_roles_of_name_and_groups(world):
    token = world.provider.token()
    assert world.status("secret", token) == 404, "proved, and without any role"
    world.roles.append(CallerRole(subject="group:search-team", grant=Grant(role=Role.CALLER, owner="ads")))
    world.publish()
    assert [world.status("secret", token) for _ in range(2)] == [200, 200]
    assert world.status("foreign", token) == 404


def segment(value):
    return base64.urlsafe_b64encode(json.dumps(value).encode()).rstrip(b"=").decode()


def signed_by_public_key(claims):
    """HMAC with the published key as its secret."""
    text = f"{segment({'alg': 'HS256', 'kid': 'first'})}.{segment(claims)}"
    digest = hmac.new(KEY.as_pem(private=False), text.encode(), hashlib.sha256).digest()
    return f"{text}.{base64.urlsafe_b64encode(digest).rstrip(b'=').decode()}"


def attacks(provider):
    claims = {
        "iss": provider.issuer,
        "aud": AUDIENCE,
        "sub": "1",
        "iat": int(time.time()),
        "exp": int(time.time()) + 600,
    }
    good = provider.token()
    header, _, signature = good.split(".")
    yield "expired", provider.token(exp=int(time.time()) - LEEWAY_SECONDS - 5)
    yield "alg none", f"{segment({'alg': 'none'})}.{segment(claims)}."
    yield "alg none with a signature", f"{segment({'alg': 'none', 'kid': 'first'})}.{segment(claims)}.{signature}"
    yield "wrong audience", provider.token(aud="another-service")
    yield "wrong issuer", provider.token(iss="http://127.0.0.1:2/realms/shop")
    yield "not yet", provider.token(nbf=int(time.time()) + 600)
    yield "no end", provider.token(exp=None)
    yield "another key", provider.token(key=OTHER)
    yield "another key by this name", provider.token(key=OTHER, header={"kid": "first"})
    yield "key of the token's own", provider.token(key=OTHER, header={"jwk": OTHER.as_dict(private=False)})
    yield "public key as a secret", signed_by_public_key(claims)
    yield "changed claims", f"{header}.{segment(claims | {'preferred_username': 'root'})}.{signature}"
    yield "cut off", good[:-8]
    yield "logout token", provider.token(header={"typ": "logout+jwt"})
    yield "huge", f"{header}.{'A' * 20_000}.{signature}"


@pytest.mark.parametrize("name", [name for name, _ in attacks(Signer(KEY))])
def test_a_token_that_proves_nobody_is_refused(world, name):
    world.roles += [CallerRole(subject=f"user:{who}", grant=Grant(role=Role.ADMIN)) for who in ("ann", "root")]
    world.publish()
    assert world.status("secret", world.provider.token()) == 200
    token = dict(attacks(world.provider))[name]
    refused = world.ask("secret", token)
    assert (refused.error.http_status, refused.reason) == (401, "unauthenticated"), refused.error.message
    assert token not in refused.error.message


def test_a_token_that_was_proved_ends_at_its_time(world):
    world.roles.append(CallerRole(subject="user:ann", grant=Grant(role=Role.CALLER)))
    world.publish()
    token = world.provider.token(exp=int(world.clock.now) + 60)
    assert world.status("secret", token) == 200
    world.clock.now += 60 + LEEWAY_SECONDS + 1
    assert world.status("secret", token) == 401


def test_keys_of_the_provider_that_were_not_read_for_too_long_prove_nobody(world):
    world.roles.append(CallerRole(subject="user:ann", grant=Grant(role=Role.CALLER)))
    world.publish()
    token = world.provider.token(exp=int(world.clock.now) + 100_000)
    assert world.status("secret", token) == 200
    world.clock.now += 3601
    refused = world.ask("secret", token)
    assert (refused.error.http_status, refused.reason) == (503, "unavailable")


def test_a_platform_without_a_provider_takes_no_token(world):
    world.tokens = None
    world.publish()
    assert world.status("secret", world.provider.token()) == 401
