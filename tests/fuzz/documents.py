"""Fuzz targets of bytes that others write and that are read whole.

Credentials, access lists, audits, manifests, signatures. Each may refuse its input by the errors that it names, and do
nothing else. What is near a good credential or signature proves nobody: only the good one does.
"""

import base64
import json
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from joserfc import jws, jwt
from joserfc.jwk import OKPKey
from pydantic import ValidationError

from ipnext.access.keys import digest_of_secret
from ipnext.artifacts.signing import check_signature, sign_digest, write_key_pair
from ipnext.errors import InvalidInput, SignatureInvalid, Unauthenticated, Unavailable
from ipnext.model.access.audit import GENESIS, AuditEntry, AuditObject, AuditWho, seal
from ipnext.model.access.audit_chain import read_anchors, read_entries, verify
from ipnext.model.access.predictions import AccessList
from ipnext.model.manifest.parser import parse_manifests
from ipnext.model.registry.signing import SignerPolicy
from ipnext.model.wire import decode
from serving.access.access_list import Callers

_NOW = 2_000_000_000.0
_SECRET = "s" * 43
_KEY = f"ipnext_{'a' * 16}.{_SECRET}"
_PAIR = OKPKey.generate_key("Ed25519", {"kid": "k"})
_CLAIMS = {
    "iss": "https://id.example",
    "aud": "ipnext",
    "sub": "1",
    "preferred_username": "ann",
    "iat": _NOW,
    "exp": _NOW + 60,
}
_TOKEN = jwt.encode(
    {"alg": "Ed25519", "kid": "k"},
    _CLAIMS,
    _PAIR,
    registry=jws.JWSRegistry(algorithms=["Ed25519"], strict_check_header=False),
)
_LIST = {
    "revision": 3,
    "models": [{"model": "ranker", "owner": "ads", "access": {"predictions": "authenticated", "callers": ["maps"]}}],
    "keys": [
        {
            "id": "a" * 16,
            "name": "app",
            "digest": digest_of_secret(_SECRET),
            "grants": [{"role": "caller", "owner": "ads"}],
        }
    ],
    "roles": [{"subject": "user:ann", "grant": {"role": "caller", "owner": "ads"}}],
    "tokens": {
        "issuer": _CLAIMS["iss"],
        "audience": "ipnext",
        "name_claim": "preferred_username",
        "keys": [_PAIR.as_dict(private=False)],
        "valid_until": _NOW + 3600,
    },
    "policies": '@id("own") forbid (principal, action, resource is Model) when { resource.owner == "shop" };',
}
_CALLERS = Callers(decode(AccessList, json.dumps(_LIST)), clock=lambda: _NOW)


def credential(data):
    """The credential of an `Authorization`, as a router proves it.

    Nothing but the key and what the provider signed proves anybody.
    """
    text = data.decode("latin-1")
    try:
        _CALLERS.prove(text)
    except Unauthenticated:
        return
    assert text == _KEY or text.rpartition(".")[0] == _TOKEN.rpartition(".")[0]


def access_list(data):
    """The list that API and workers push to a region.

    What can't be read is refused whole, and the good list stays in use.
    """
    try:
        callers = Callers(decode(AccessList, data), clock=lambda: _NOW)
    except (ValidationError, InvalidInput):
        return
    for text in (_KEY, _TOKEN):
        try:
            caller = callers.prove(text)
        except (Unauthenticated, Unavailable):
            continue
        for model in callers.models.values():
            callers.decide(caller, model)


def audit(data):
    """An exported audit, and behind a line of its own the anchors: verified or not, never an error of another kind."""
    entries, _, anchors = data.partition(b"\n=\n")
    try:
        known = read_anchors(anchors.decode()) if anchors else ()
    except (InvalidInput, UnicodeDecodeError):
        known = ()
    found = verify(read_entries(entries.splitlines()), anchors=known)
    assert found.fault is not None or found.entries == found.last


def manifests(data):
    """YAML of models, fleets, freezes and owners."""
    try:
        text = data.decode()
    except UnicodeDecodeError:
        return
    try:
        parse_manifests(text)
    except InvalidInput:
        return


def _keys():
    with tempfile.TemporaryDirectory() as place:
        private, public = Path(place) / "key.pem", Path(place) / "key.pub.pem"
        write_key_pair(private, public)
        return SignerPolicy(public_keys=(public.read_text(),)), sign_digest(_DIGEST, private).content


_DIGEST = "0" * 64
_POLICY, _SIGNATURE = _keys()


def signature(data):
    """A signature file beside a snapshot, as validation and hosts read it: only the signed statement passes."""
    try:
        check_signature(_POLICY, _DIGEST, data, "snapshot")
    except SignatureInvalid:
        return
    given, good = json.loads(data), json.loads(_SIGNATURE)
    assert base64.b64decode(given["payload"]) == base64.b64decode(good["payload"])
    assert base64.b64decode(good["signatures"][0]["sig"]) in {
        base64.b64decode(one["sig"]) for one in given["signatures"]
    }


def _entries(count):
    """The lines of a good export."""
    previous, lines = GENESIS, []
    for sequence in range(1, count + 1):
        entry = seal(
            AuditEntry(
                sequence=sequence,
                at=datetime(2026, 1, 1, tzinfo=UTC),
                who=AuditWho(kind="key", id="a" * 16, name="app"),
                action="models.apply",
                object=AuditObject(kind="Model", name="ranker"),
                outcome="done",
                request_id="r",
                prev_hash=previous,
                hash=GENESIS,
            )
        )
        previous = entry.hash
        lines.append(json.dumps(entry.plain()).encode())
    anchor = json.dumps({"sequence": count, "hash": previous}).encode()
    return b"\n".join([*lines, b"=", anchor])


_OWNER = b"""apiVersion: ipnext/v1
kind: Owner
metadata: {name: search}
spec:
  description: ranking
  members: [{subject: "group:a", role: publisher}]
  quotas: {models: 20, units: {cpu: 64}, dollarsPerHour: 120, requestsPerSecond: 5000}
  priority: 10
"""
_FREEZE = b"""apiVersion: ipnext/v1
kind: Freeze
metadata: {name: sale}
spec:
  reason: a sale
  windows: [{start: 2026-12-20T00:00, end: 2026-12-27, rrule: FREQ=YEARLY, timeZone: Europe/Berlin}]
  scope: {models: ["ranker*"], owners: [search]}
"""

SEEDS = {
    credential: [_KEY.encode(), _TOKEN.encode(), b"eyJhbGciOiJub25lIn0.eyJzdWIiOiJhIn0.", b"Bearer x"],
    access_list: [
        json.dumps(_LIST).encode(),
        json.dumps(_LIST).replace(digest_of_secret(_SECRET), "\u00e9").encode(),  # no digest
    ],
    audit: [_entries(3)],
    manifests: [_OWNER, _FREEZE],
    signature: [_SIGNATURE],
}
