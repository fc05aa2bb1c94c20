"""Tokens of a real identity provider: what proves a person, and what an attacker may try."""

import base64
import contextlib
import hashlib
import hmac
import json
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from joserfc.jwk import OKPKey

from ipnext.access.key_sets import ALGORITHMS, usable_keys
from ipnext.access.oidc import LEEWAY_SECONDS, LONGEST_TOKEN, TokenVerifier
from ipnext.access.signing_keys import (
    BETWEEN_READS_SECONDS,
    FRESH_SECONDS,
    LASTS_SECONDS,
    MOST_WAITING,
    SigningKeys,
)
from ipnext.errors import Unauthenticated, Unavailable
from ipnext.login.identity_provider import ProviderClient
from tests.identity_provider import AUDIENCE, ec_key, rsa_key
from tests.waiting import until

OTHER = rsa_key("other")
EC = ec_key("elliptic")


class Clock:
    """A clock that stands until it is moved."""

    def __init__(self, now: float = 0.0) -> None:
        self.now = now

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def ticking():
    return Clock()


@pytest.fixture
def keys(provider, ticking):
    found = SigningKeys(ProviderClient(provider.issuer), clock=ticking)
    yield found
    found.close()


@pytest.fixture
def verifier(provider, keys):
    return TokenVerifier(provider.issuer, AUDIENCE, keys)


def encoded(value):
    content = value if isinstance(value, bytes) else json.dumps(value).encode()
    return base64.urlsafe_b64encode(content).rstrip(b"=").decode()


def claims_of(provider, **changes):
    now = int(time.time())
    of = {"iss": provider.issuer, "aud": AUDIENCE, "sub": "1234", "iat": now, "exp": now + 600}
    return of | changes


def signed(provider, header, payload):
    """A token whose parts are signed by the provider's key as they are, whatever they say."""
    parts = f"{header}.{payload}"
    from cryptography.hazmat.primitives.asymmetric.padding import PKCS1v15  # noqa: PLC0415
    from cryptography.hazmat.primitives.hashes import SHA256  # noqa: PLC0415

    signature = provider.key.private_key.sign(parts.encode(), PKCS1v15(), SHA256())
    return f"{parts}.{encoded(signature)}"


def rs256(provider, **more):
    return encoded({"alg": "RS256", "kid": provider.key.kid} | more)


def test_a_token_proves_its_person_with_name_and_groups(provider, verifier):
    found = verifier.verify(provider.token())
    assert (found.name, found.groups, found.id) == ("ann", ("search-team",), f"{provider.issuer}#1234")
    assert found.subjects == ("user:ann", "sub:1234", "group:search-team")


ANNS = {"email": "ann@corp.com", "email_verified": True}


@pytest.mark.parametrize(
    ("claims", "subjects"),
    [
        (ANNS, {"user:ann", "email:ann@corp.com", "sub:1234"}),
        (ANNS | {"preferred_username": None}, {"email:ann@corp.com", "sub:1234"}),
        (ANNS | {"email_verified": False}, {"user:ann", "sub:1234"}),
        (ANNS | {"email_verified": "true"}, {"user:ann", "sub:1234"}),
        (ANNS | {"email": "ann@corp.com\n"}, {"user:ann", "sub:1234"}),
        ({"preferred_username": "ann@corp.com"}, {"user:ann@corp.com", "sub:1234"}),
        ({"preferred_username": None, "sub": "ann"}, {"sub:ann"}),
    ],
)
def test_each_kind_of_subject_is_of_one_claim(provider, verifier, claims, subjects):
    assert set(verifier.verify(provider.token(**claims, groups=[])).subjects) == subjects


def test_an_address_that_is_not_verified_names_no_user(provider, keys):
    verifier = TokenVerifier(provider.issuer, AUDIENCE, keys, name_claim="email")
    assert "user:ann@corp.com" in verifier.verify(provider.token(**ANNS)).subjects
    for verified in (False, None, "true", 1):
        with pytest.raises(Unauthenticated, match="email_verified"):
            verifier.verify(provider.token(**ANNS | {"email_verified": verified}))


@pytest.mark.parametrize("bound", [{"jkt": "x"}, {}, None, "x"])
def test_a_token_that_is_bound_to_a_key_proves_nobody(provider, verifier, bound):
    content = encoded(claims_of(provider, preferred_username="ann", cnf=bound))
    with pytest.raises(Unauthenticated, match="cnf"):
        verifier.verify(signed(provider, rs256(provider), content))


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_each_listed_algorithm_is_taken(provider, verifier, algorithm):
    kind, curve = ALGORITHMS[algorithm]
    key = OKPKey.generate_key("Ed25519", {"kid": "k"}) if kind == "OKP" else ec_key("k", curve) if curve else OTHER
    provider.rotate(key)
    assert verifier.verify(provider.token(header={"alg": algorithm})).name == "ann"


def test_the_list_has_no_secret_and_no_missing_signature():
    assert not [name for name in ALGORITHMS if name == "none" or name.startswith("HS")]


@pytest.mark.parametrize(
    ("claims", "name"),
    [
        ({"preferred_username": "ann", "email": "a@x", "email_verified": True}, "ann"),
        ({"preferred_username": None, "email": "a@x", "email_verified": True}, "a@x"),
        ({"preferred_username": None, "email": "a@x", "email_verified": False}, "1234"),
        ({"preferred_username": None, "email": "a@x"}, "1234"),
        ({"preferred_username": None, "email": "a@x", "email_verified": "true"}, "1234"),
        ({"preferred_username": ""}, "1234"),
    ],
)
def test_a_person_is_named_by_the_first_claim_that_can_be_trusted(provider, verifier, claims, name):
    assert verifier.verify(provider.token(**claims)).name == name


def test_configured_claims_name_person_and_groups(provider, keys):
    verifier = TokenVerifier(provider.issuer, AUDIENCE, keys, name_claim="upn", groups_claim="roles")
    assert verifier.verify(provider.token(upn="bob", roles="one")).subjects[::2] == ("user:bob", "group:one")
    with pytest.raises(Unauthenticated, match="claim 'upn'"):
        verifier.verify(provider.token(roles=["one"]))


def test_groups_that_can_not_be_named_are_left_out(provider, verifier):
    found = verifier.verify(provider.token(groups=["b", "a", "a", "", " a", "a\nb", "x" * 257]))
    assert found.groups == ("a", "b")


@pytest.mark.parametrize("audience", [AUDIENCE, [AUDIENCE], ["account", AUDIENCE]])
def test_audiences_may_be_several(provider, verifier, audience):
    assert verifier.verify(provider.token(aud=audience)).sub == "1234"


NOW = object()
"""In a claim: an offset to the present time."""


def at(offset):
    return (NOW, offset)


@pytest.mark.parametrize(
    ("claims", "words"),
    [
        ({"exp": at(-LEEWAY_SECONDS - 2)}, "expired"),
        ({"exp": None}, "exp"),
        ({"exp": "2999-01-01"}, "exp"),
        ({"exp": True}, "exp"),
        ({"nbf": at(LEEWAY_SECONDS + 60)}, "not yet valid"),
        ({"nbf": "soon"}, "nbf"),
        ({"iat": at(LEEWAY_SECONDS + 60)}, "issued in the future"),
        ({"iat": None}, "iat"),
        ({"aud": "another-service"}, "aud"),
        ({"aud": ["another-service"]}, "aud"),
        ({"aud": []}, "aud"),
        ({"aud": {"ipnext-api": 1}}, "aud"),
        ({"aud": None}, "aud"),
        ({"iss": "http://127.0.0.1:1/realms/other"}, "iss"),
        ({"iss": None}, "iss"),
        ({"iss": ["http://127.0.0.1:1"]}, "iss"),
        ({"sub": None}, "sub"),
        ({"sub": ""}, "sub"),
        ({"sub": 7}, "sub"),
        ({"sub": "x" * 257}, "sub"),
        ({"preferred_username": "ann\n(key admin)"}, "preferred_username"),
        ({"preferred_username": ["ann"]}, "preferred_username"),
        ({"groups": {"admins": True}}, "groups"),
        ({"groups": ["a", 7]}, "groups"),
        ({"groups": [["admins"]]}, "groups"),
    ],
)
def test_claims_that_do_not_hold_are_refused(provider, verifier, claims, words):
    now = int(time.time())
    given = {name: now + value[1] if isinstance(value, tuple) else value for name, value in claims.items()}
    with pytest.raises(Unauthenticated, match=words):
        verifier.verify(provider.token(**given))


@pytest.mark.parametrize(
    "claims", [{"exp": at(-LEEWAY_SECONDS + 20)}, {"nbf": at(20)}, {"iat": at(20)}, {"exp": (NOW, 10**30)}]
)
def test_clocks_may_differ_by_the_leeway(provider, keys, claims):
    now = int(time.time())
    verifier = TokenVerifier(provider.issuer, AUDIENCE, keys, clock=lambda: now)
    given = {name: now + value[1] for name, value in claims.items()}
    assert verifier.verify(provider.token(**given)).name == "ann"


def none_signed(provider):
    return f"{encoded({'alg': 'none', 'kid': provider.key.kid})}.{encoded(claims_of(provider))}."


def none_with_signature(provider):
    return none_signed(provider) + "AA"


def public_key_as_secret(provider, algorithm="HS256"):
    pem = provider.key.public_key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)
    text = f"{encoded({'alg': algorithm, 'kid': provider.key.kid})}.{encoded(claims_of(provider))}"
    return f"{text}.{encoded(hmac.new(pem, text.encode(), hashlib.sha256).digest())}"


def modulus_as_secret(provider):
    secret = base64.urlsafe_b64decode(provider.key.as_dict(private=False)["n"] + "==")
    text = f"{encoded({'alg': 'HS256', 'kid': provider.key.kid})}.{encoded(claims_of(provider))}"
    return f"{text}.{encoded(hmac.new(secret, text.encode(), hashlib.sha256).digest())}"


def other_key(provider, **header):
    return provider.token(key=OTHER, header={"kid": provider.key.kid} | header)


def last_letter_changed(provider):
    text = provider.token()
    head, body, signature = text.split(".")
    return f"{head}.{body}.{'B' if signature[0] == 'A' else 'A'}{signature[1:]}"


def claims_changed(provider):
    head, _, signature = provider.token().split(".")
    return f"{head}.{encoded(claims_of(provider, sub='admin'))}.{signature}"


PUBLIC_OTHER = OTHER.as_dict(private=False)

HOSTILE = {
    "alg none": (none_signed, "JWT"),
    "alg none with a signature": (none_with_signature, "algorithm"),
    "alg None": (lambda p: f"{encoded({'alg': 'None'})}.{encoded(claims_of(p))}.AA", "algorithm"),
    "alg a list": (lambda p: f"{encoded({'alg': ['RS256']})}.{encoded(claims_of(p))}.AA", "algorithm"),
    "no alg": (lambda p: f"{encoded({'kid': 'first'})}.{encoded(claims_of(p))}.AA", "algorithm"),
    "public key as the secret of HS256": (public_key_as_secret, "algorithm"),
    "modulus as the secret of HS256": (modulus_as_secret, "algorithm"),
    "public key as the secret, named RS256": (lambda p: public_key_as_secret(p, "RS256"), "signature"),
    "signed by another key": (other_key, "signature"),
    "another key of its own kid": (lambda p: p.token(key=OTHER), "does not publish"),
    "kid with a path": (lambda p: p.token(key=OTHER, header={"kid": "../../../../dev/null"}), "does not publish"),
    "kid with SQL": (lambda p: p.token(key=OTHER, header={"kid": "x' UNION SELECT 'k"}), "does not publish"),
    "kid of a URL": (lambda p: p.token(key=OTHER, header={"kid": "http://127.0.0.1:9/k"}), "does not publish"),
    "kid huge": (lambda p: p.token(key=OTHER, header={"kid": "k" * 3000}), "kid"),
    "kid a number": (lambda p: f"{encoded({'alg': 'RS256', 'kid': 7})}.{encoded(claims_of(p))}.AA", "kid"),
    "no kid, another key": (lambda p: other_key(p, kid=None), "signature"),
    "key of another type": (lambda p: p.token(key=EC, header={"kid": p.key.kid}), "does not publish"),
    "algorithm of another type": (
        lambda p: f"{encoded({'alg': 'ES256', 'kid': 'first'})}.{encoded(claims_of(p))}.AA",
        "does not publish",
    ),
    "jwk brings its own key": (lambda p: other_key(p, jwk=PUBLIC_OTHER), "signature"),
    "jku names its own keys": (lambda p: other_key(p, jku=f"{p.issuer}/evil"), "signature"),
    "x5u names its own certificate": (lambda p: other_key(p, x5u=f"{p.issuer}/evil"), "signature"),
    "x5c brings its own certificate": (lambda p: other_key(p, x5c=["MIIB"]), "signature"),
    "crit": (lambda p: signed(p, rs256(p, crit=["exp"]), encoded(claims_of(p))), "crit"),
    "payload not encoded": (lambda p: signed(p, rs256(p, b64=False, crit=["b64"]), encoded(claims_of(p))), "b64"),
    "nested": (lambda p: signed(p, rs256(p, cty="JWT"), encoded(p.token().encode())), "cty"),
    "nested without cty": (lambda p: signed(p, rs256(p), encoded(p.token().encode())), "claims"),
    "token of a logout": (lambda p: p.token(header={"typ": "logout+jwt"}), "typ"),
    "typ a number": (lambda p: signed(p, rs256(p, typ=7), encoded(claims_of(p))), "typ"),
    "encrypted": (lambda _: "eyJhbGciOiJSU0EtT0FFUCIsImVuYyI6IkEyNTZHQ00ifQ.a.b.c.d", "JWT"),
    "huge": (lambda p: p.token(filler="x" * LONGEST_TOKEN), "JWT"),
    "huge header": (lambda p: p.token(header={"filler": "x" * 5000}), "signature"),
    "not JSON": (lambda p: signed(p, rs256(p), encoded(b"not JSON")), "claims"),
    "JSON of another kind": (lambda p: signed(p, rs256(p), encoded(["sub"])), "claims"),
    "JSON in UTF-16": (lambda p: signed(p, rs256(p), encoded(json.dumps(claims_of(p)).encode("utf-16"))), "claims"),
    "NaN": (lambda p: signed(p, rs256(p), encoded({**claims_of(p), "exp": float("nan")})), "claims"),
    "Infinity": (lambda p: signed(p, rs256(p), encoded({**claims_of(p), "exp": float("inf")})), "claims"),
    "deep": (lambda p: signed(p, rs256(p), encoded(b"[" * 9000 + b"]" * 300)), "claims"),
    "deep header": (lambda p: signed(p, encoded(b'{"a":' * 1800), encoded(claims_of(p))), "header"),
    "header not JSON": (lambda p: f"AAAA.{encoded(claims_of(p))}.AA", "header"),
    "header of one letter": (lambda p: f"A.{encoded(claims_of(p))}.AA", "header"),
    "a claim twice": (
        lambda p: signed(p, rs256(p), encoded(json.dumps(claims_of(p))[:-1].encode() + b',"sub":"admin"}')),
        "twice",
    ),
    "a claim twice, inside": (
        lambda p: signed(p, rs256(p), encoded(json.dumps(claims_of(p))[:-1].encode() + b',"a":{"b":1,"b":2}}')),
        "twice",
    ),
    "alg twice": (lambda p: signed(p, encoded(b'{"alg":"RS256","alg":"none"}'), encoded(claims_of(p))), "twice"),
    "signature changed": (last_letter_changed, "signature"),
    "claims changed": (claims_changed, "signature"),
    "no signature": (lambda p: p.token().rpartition(".")[0] + ".", "JWT"),
    "two parts": (lambda p: p.token().rpartition(".")[0], "JWT"),
    "four parts": (lambda p: p.token() + ".AA", "JWT"),
    "blanks inside": (lambda p: p.token().replace(".", ". "), "JWT"),
    "padding": (lambda p: p.token() + "==", "JWT"),
    "line end": (lambda p: p.token() + "\n", "JWT"),
    "empty": (lambda _: "", "JWT"),
    "words": (lambda _: "let me in", "JWT"),
}


@pytest.mark.parametrize(("forge", "words"), HOSTILE.values(), ids=HOSTILE)
def test_forged_tokens_prove_nobody_and_are_not_repeated(provider, verifier, forge, words):
    text = forge(provider)
    with pytest.raises(Unauthenticated, match=words) as refused:
        verifier.verify(text)
    assert not text or text not in refused.value.message
    assert "evil" not in provider.asked


def test_the_tools_of_the_forger_make_tokens_that_would_pass(provider, verifier, ticking):
    assert verifier.verify(signed(provider, rs256(provider), encoded(claims_of(provider)))).sub == "1234"
    provider.rotate(OTHER)
    ticking.now += BETWEEN_READS_SECONDS
    assert verifier.verify(provider.token(header={"jku": f"{provider.issuer}/evil"})).sub == "1234"
    assert "evil" not in provider.asked


# keys


PUBLIC = {
    "RSA": OTHER.as_dict(private=False),
    "EC": EC.as_dict(private=False),
}


@pytest.mark.parametrize(
    "data",
    [
        {"kty": "oct", "k": "c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0c2VjcmV0", "kid": "s"},
        {"kty": "RSA", "kid": "short", "e": "AQAB", "n": encoded(b"\xff" * 128)},
        {"kty": "RSA", "kid": "long", "e": "AQAB", "n": encoded(b"\xff" * 2048)},
        OTHER.as_dict(private=True),
        PUBLIC["RSA"] | {"use": "enc"},
        PUBLIC["RSA"] | {"key_ops": ["encrypt"]},
        PUBLIC["RSA"] | {"n": "AA"},
        PUBLIC["RSA"] | {"n": 7},
        PUBLIC["RSA"] | {"kid": 7},
        PUBLIC["EC"] | {"crv": "P-999"},
        PUBLIC["EC"] | {"x": PUBLIC["EC"]["y"], "y": PUBLIC["EC"]["x"]},
        {"kty": "AKP", "alg": "ML-DSA-44", "pub": "AA"},
        {"kty": ["RSA"]},
        {},
        "RSA",
        None,
    ],
)
def test_keys_that_can_not_verify_are_left_out_and_the_others_stay(data):
    assert [key.kid for key in usable_keys([data, PUBLIC["EC"]])] == ["elliptic"]


@pytest.mark.parametrize("document", [None, {}, "keys", 7, []])
def test_a_key_set_of_another_form_has_no_keys(document):
    assert list(usable_keys(document)) == []


def test_a_key_serves_only_the_algorithm_that_it_names(provider, verifier):
    provider.published = [provider.key.as_dict(private=False) | {"alg": "RS512"}]
    assert verifier.verify(provider.token(header={"alg": "RS512"})).name == "ann"
    with pytest.raises(Unauthenticated, match="for its algorithm"):
        verifier.verify(provider.token())


def test_a_token_without_kid_needs_a_single_key_of_its_algorithm(provider, verifier, keys, ticking):
    provider.rotate(EC, keep=True)
    assert verifier.verify(provider.token(header={"kid": None})).name == "ann"
    provider.published.append(ec_key("second").as_dict(private=False))
    ticking.now += FRESH_SECONDS + 1
    assert verifier.verify(provider.token()).name == "ann"  # reads the keys in the background
    until(lambda: not keys._reading.locked())
    with pytest.raises(Unauthenticated, match="which of"):
        verifier.verify(provider.token(header={"kid": None}))


def test_keys_are_read_once_for_many_tokens(provider, verifier):
    for _ in range(5):
        verifier.verify(provider.token())
    assert provider.asked == {"openid-configuration": 1, "keys": 1}


def test_a_new_key_is_read_when_a_token_names_it(provider, verifier, ticking):
    former = provider.token()
    verifier.verify(former)
    provider.rotate(OTHER)
    ticking.now += BETWEEN_READS_SECONDS
    assert verifier.verify(provider.token()).name == "ann"
    with pytest.raises(Unauthenticated, match="does not publish"):
        verifier.verify(former)


def test_a_key_swapped_under_the_same_kid_proves_nothing_until_it_is_published(provider, verifier, keys, ticking):
    verifier.verify(provider.token())
    swapped = rsa_key(provider.key.kid)
    with pytest.raises(Unauthenticated, match="signature"):
        verifier.verify(provider.token(key=swapped))
    former = provider.token()
    provider.rotate(swapped)
    ticking.now += FRESH_SECONDS + 1
    with contextlib.suppress(Unauthenticated):  # if the keys that it has read in the background come first
        verifier.verify(former)
    until(lambda: not keys._reading.locked())
    assert verifier.verify(provider.token()).name == "ann"
    with pytest.raises(Unauthenticated, match="signature"):
        verifier.verify(former)


def test_unknown_keys_make_the_provider_be_asked_once_in_a_while(provider, verifier, ticking):
    verifier.verify(provider.token())
    for turn in range(3):
        ticking.now += BETWEEN_READS_SECONDS
        for number in range(20):
            with pytest.raises(Unauthenticated):
                verifier.verify(provider.token(key=OTHER, header={"kid": f"unknown-{number}"}))
        assert provider.asked["keys"] == 2 + turn


def test_few_requests_wait_for_a_provider_that_hangs(provider, verifier, keys, ticking):
    known = provider.token()
    verifier.verify(known)
    ticking.now += BETWEEN_READS_SECONDS
    provider.gate = threading.Event()
    with ThreadPoolExecutor(MOST_WAITING) as pool:
        waiting = [pool.submit(verifier.verify, provider.token(key=OTHER)) for _ in range(MOST_WAITING)]
        until(lambda: provider.asked["openid-configuration"] == 2 and not keys._waiting._value)
        with pytest.raises(Unavailable, match="being read"):
            verifier.verify(provider.token(key=OTHER))
        assert verifier.verify(known).name == "ann"
        provider.rotate(OTHER, keep=True)
        provider.gate.set()
        assert {each.result().name for each in waiting} == {"ann"}
    assert provider.asked["openid-configuration"] == 2


def test_a_provider_that_is_away_at_the_start_is_told_and_asked_again(provider, verifier, ticking):
    provider.away = True
    for _ in range(3):
        with pytest.raises(Unavailable, match="can't be had now: the identity provider does not answer"):
            verifier.verify(provider.token())
    asked = provider.asked["openid-configuration"]
    provider.away = False
    with pytest.raises(Unavailable):
        verifier.verify(provider.token())
    assert provider.asked["openid-configuration"] == asked
    ticking.now += BETWEEN_READS_SECONDS
    assert verifier.verify(provider.token()).name == "ann"


def test_a_provider_that_goes_away_later_is_not_missed_for_a_while(provider, verifier, keys, ticking):
    verifier.verify(provider.token())
    provider.away = True
    ticking.now += FRESH_SECONDS + 1
    assert verifier.verify(provider.token()).name == "ann"  # asks in the background
    until(lambda: not keys._reading.locked())
    ticking.now += LASTS_SECONDS - FRESH_SECONDS - 2
    assert verifier.verify(provider.token()).name == "ann"
    until(lambda: not keys._reading.locked())
    assert provider.asked["openid-configuration"] == 3
    ticking.now += BETWEEN_READS_SECONDS
    with pytest.raises(Unavailable, match="can't be had now"):
        verifier.verify(provider.token())
    provider.away = False
    ticking.now += BETWEEN_READS_SECONDS
    assert verifier.verify(provider.token()).name == "ann"


def test_hostile_tokens_do_not_reach_a_provider_that_is_away(provider, verifier):
    provider.away = True
    with pytest.raises(Unauthenticated):
        verifier.verify(public_key_as_secret(provider))
    assert not provider.asked
