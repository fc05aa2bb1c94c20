"""Signatures over HTTP: what a stranger uploads takes no place and spoils nothing."""

import base64
import hashlib
import json
from collections import Counter

import pytest
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ed25519

from ipnext.artifacts import layout
from ipnext.artifacts.signing import check_signature, sign_digest, write_key_pair
from ipnext.artifacts.stores.file_store import FileArtifactStore
from ipnext.model.access.rights import Role
from ipnext.model.manifest.manifest import ModelManifest
from ipnext.model.registry.signing import MOST_KEPT, SignatureEnvelope, SignerPolicy
from ipnext.platform import signatures
from ipnext.store.repository import Repository

pytestmark = pytest.mark.trust

B64 = base64.b64encode(bytes(64)).decode()


class House:
    """Two owners, each with a model that trusts a key of its own and a publisher, and a snapshot of beta's."""

    def __init__(self, world):
        self.http, self.rooms = world.http, world.rooms
        self._askers = {}

    def pair(self, name):
        """The private file and the public text of a key."""
        private, public = self.rooms.directory / f"{name}.pem", self.rooms.directory / f"{name}.pub.pem"
        if not private.exists():
            write_key_pair(private, public)
        return private, public.read_text()

    def trust(self, owner, *keys, model=None):
        """Apply a model of an owner with these keys."""
        document = self.rooms.model_document(model or f"of-{owner}")
        document["metadata"]["owner"] = owner
        document["spec"]["validation"] = {"signers": {"publicKeys": [self.pair(key)[1] for key in keys]}}
        with self.rooms.store.begin() as unit:
            unit.put_model(ModelManifest.model_validate(document), expected_version=None)

    def signed(self, *keys):
        """A signature of the snapshot by each key, as entries of an envelope."""
        return [json.loads(sign_digest(self.digest, self.pair(key)[0]).content)["signatures"][0] for key in keys]

    async def put(self, owner, entries, digest=None):
        if owner not in self._askers:
            self._askers[owner] = self.rooms.add_key(f"of-{owner}", Role.PUBLISHER, owner=owner)
        payload = json.loads(sign_digest(self.digest, self.pair("any")[0]).content)["payload"]
        body = {"payloadType": "application/vnd.in-toto+json", "payload": payload, "signatures": entries}
        path = f"/v1/artifacts/snapshots/{digest or self.digest}/signature"
        return await self.http.put(path, json=body, headers={"Authorization": f"Bearer {self._askers[owner]}"})

    @property
    def kept(self):
        """The entries beside the snapshot."""
        content = self.rooms.artifacts.signature(layout.snapshot_uri(self.rooms.artifacts.uri, self.digest))
        return [] if content is None else json.loads(content)["signatures"]

    def put_directly(self, entries):
        """Entries that came into the store by another way."""
        payload = json.loads(sign_digest(self.digest, self.pair("any")[0]).content)
        folder = self.rooms.artifacts.root / layout.signatures_prefix(self.digest)
        folder.mkdir(parents=True, exist_ok=True)
        for entry in entries:
            content = json.dumps(payload | {"signatures": [entry]}).encode()
            (folder / hashlib.sha256(content).hexdigest()).write_bytes(content)

    def check(self, *keys):
        """Judge the file as hosts do. SignatureInvalid."""
        content = self.rooms.artifacts.signature(layout.snapshot_uri(self.rooms.artifacts.uri, self.digest))
        policy = SignerPolicy(public_keys=tuple(self.pair(key)[1] for key in keys))
        return check_signature(policy, self.digest, content, "s")


@pytest.fixture
async def house(world):
    world.rooms.seed()
    found = House(world)
    found.digest = await world.upload(b"weights of beta's")
    found.trust("alpha", "alpha")
    found.trust("beta", "beta")
    return found


@pytest.mark.parametrize(
    "entries",
    [
        [{"keyid": "x", "sig": "!!!"}],
        [{"keyid": "x", "sig": "AAAA"}],
        [{"keyid": "", "sig": "AAAA"}],
        [{"keyid": "x", "sig": ""}],
        [{"keyid": "x", "sig": "A" * 4096}],
        [{"keyid": "x" * 200, "sig": "AAAA"}],
        [{"keyid": "x", "sig": "AAAA"}] * 2,
        [{"keyid": f"x{n}", "sig": B64} for n in range(32)],
        [{"keyid": f"x{n}", "sig": B64} for n in range(33)],
    ],
)
@pytest.mark.parametrize("order", ["before", "after"])
async def test_junk_is_refused_and_spoils_no_signature(house, entries, order):
    if order == "after":
        assert (await house.put("beta", house.signed("beta"))).status_code == 204
    refused = await house.put("alpha", entries)
    assert (refused.status_code, refused.json()["code"]) == (422, "SignatureInvalid")
    assert "signatures" in refused.json()["message"]
    if order == "before":
        assert (await house.put("beta", house.signed("beta"))).status_code == 204
    assert house.check("beta").startswith("signed by ")
    assert len(house.kept) == 1


def strange_key():
    """A well-formed public key of an algorithm that nobody knows."""
    key = ed25519.Ed25519PrivateKey.generate().public_key()
    der = key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)
    content = base64.encodebytes(der.replace(b"\x2b\x65\x70", b"\x2b\x65\x7a")).decode()
    return f"-----BEGIN PUBLIC KEY-----\n{content}-----END PUBLIC KEY-----\n"


async def test_a_key_that_nobody_can_read_is_refused_and_one_that_is_there_spoils_no_signature(house):
    document = house.rooms.model_document("of-alpha")
    document["spec"]["validation"] = {"signers": {"publicKeys": [strange_key()]}}
    headers = {"Authorization": f"Bearer {house.rooms.admin_key}"}
    refused = await house.http.put("/v1/models/of-alpha", json=document, headers=headers)
    assert (refused.status_code, "spec.validation.signers.publicKeys.0: " in refused.json()["message"]) == (400, True)
    with house.rooms.store.begin() as unit:
        unit.put_model(ModelManifest.model_validate(document), expected_version=None)
    house.trust("beta", "beta")
    assert (await house.put("beta", house.signed("beta"))).status_code == 204


async def test_a_stranger_cannot_write_under_the_key_of_another_owner(house):
    (right,) = house.signed("beta")
    refused = await house.put("alpha", [right | {"sig": B64}])
    assert refused.status_code == 422
    assert "no model that you may publish trusts key" in refused.json()["message"]
    assert "spec.validation.signers.publicKeys" in refused.json()["message"]
    assert house.kept == []


async def test_a_wrong_signature_under_ones_own_key_is_refused_and_nothing_of_the_upload_is_kept(house):
    (right,) = house.signed("alpha")
    refused = await house.put("alpha", [right, right | {"sig": B64}])
    assert refused.status_code == 422
    assert "signatures.1: is no valid signature" in refused.json()["message"]
    assert house.kept == []


async def test_junk_that_lies_there_under_the_key_does_not_keep_the_signature_out(house):
    (right,) = house.signed("beta")
    house.put_directly([right | {"sig": B64}, right | {"sig": "!!!"}, {"keyid": 7}, *house.signed("any")])
    assert (await house.put("beta", [right])).status_code == 204
    assert house.check("beta").startswith("signed by ")


async def test_keys_of_two_owners_sign_one_snapshot(house):
    for owner in ("alpha", "beta"):
        assert (await house.put(owner, house.signed(owner))).status_code == 204
    assert house.check("alpha")
    assert house.check("beta")


async def test_the_same_upload_again_adds_nothing(house):
    for _ in range(2):
        assert (await house.put("beta", house.signed("beta"))).status_code == 204
    assert len(house.kept) == 1


async def test_signatures_that_are_there_may_come_again_with_another_one(house):
    await house.put("alpha", house.signed("alpha"))
    assert (await house.put("beta", house.signed("alpha", "beta"))).status_code == 204
    assert len(house.kept) == 2


async def test_a_key_of_the_operators_file_signs_for_every_owner(world):
    world.rooms.settings = world.rooms.settings.model_copy(
        update={"native_library_keys_file": world.rooms.directory / "build.pub.pem"}
    )
    async with world.rooms.client() as client:
        house = House(world)
        house.http, house.digest = client, await world.upload(b"a library")
        house.pair("build")
        assert (await house.put("alpha", house.signed("build"))).status_code == 204
        assert house.check("build")


async def test_one_owner_s_keys_leave_room_for_those_of_others(house, monkeypatch):
    """Also after it changed its keys: what nobody trusts any more gives way once there is no room."""
    monkeypatch.setattr(signatures, "MOST_SIGNATURES", 2)
    monkeypatch.setattr(layout, "MOST_KEPT", 4)
    found = Counter()
    for turn in range(3):
        keys = [f"alpha-{turn}-{n}" for n in range(3)]
        house.trust("alpha", *keys)
        for key in keys:
            found[(await house.put("alpha", house.signed(key))).status_code] += 1
    assert found == {204: 6, 422: 3}
    assert len(house.kept) <= 4
    assert (await house.put("beta", house.signed("beta"))).status_code == 204
    assert house.check("beta")
    house.trust("alpha", "alpha-9")
    assert (await house.put("alpha", house.signed("alpha-9"))).status_code == 204
    assert house.check("beta")


async def test_a_directory_that_the_server_reads_is_judged_alike(house):
    directory = house.rooms.settings.artifact_roots[0] / "one"
    house.rooms.write_snapshot(directory, b"weights of beta's")
    envelope = json.loads(sign_digest(house.digest, house.pair("beta")[0]).content)
    for entries, status in ([{"keyid": "x", "sig": B64}], 422), (house.signed("beta"), 202):
        (directory / "snapshot.json.sig").write_text(json.dumps(envelope | {"signatures": entries}))
        body = {"parts": {"sparse": {"uri": directory.as_uri()}, "dense": {"uri": directory.as_uri()}}}
        answer = await house.http.post("/v1/models/of-beta/publish", json=body)
        assert answer.status_code == status, answer.text
    assert house.check("beta")


def test_a_full_snapshot_takes_no_more_and_loses_nothing(house):
    envelope = sign_digest(house.digest, house.pair("beta")[0])
    entry = envelope.signatures[0]
    more = tuple(entry.model_copy(update={"keyid": f"k{n}"}) for n in range(MOST_KEPT))
    full = SignatureEnvelope(payload=envelope.payload, signatures=(entry, *more[1:]))
    known = layout.signature_changes({}, full, house.digest).added
    assert len(known) == MOST_KEPT
    assert layout.signature_changes(known, envelope, house.digest) == ({}, frozenset())
    another = envelope.model_copy(update={"signatures": more[:1]})
    with pytest.raises(layout.SignatureInvalid, match="as many as a snapshot may have"):
        layout.signature_changes(known, another, house.digest)
    changes = layout.signature_changes(known, another, house.digest, lambda: {entry.keyid})
    assert (len(changes.added), len(changes.dropped)) == (1, MOST_KEPT - 1)


async def test_two_processes_that_add_at_once_keep_both_signatures(house, monkeypatch):
    """The second one adds its own between the look and the write of the first one."""
    real, second = layout.signature_changes, sign_digest(house.digest, house.pair("alpha")[0])

    def overtaken(*given):
        monkeypatch.setattr(layout, "signature_changes", real)
        found = real(*given)
        FileArtifactStore(house.rooms.artifacts.root).put_signature(house.digest, second)
        return found

    monkeypatch.setattr(layout, "signature_changes", overtaken)
    assert (await house.put("beta", house.signed("beta"))).status_code == 204
    assert layout.signature_changes is real
    assert house.check("alpha")
    assert house.check("beta")


async def test_the_keys_of_all_models_are_read_again_only_after_a_manifest_has_changed(house, monkeypatch):
    reads = Counter[str]()
    signer_keys = Repository.signer_keys

    def counted(unit):
        reads["all"] += 1
        return signer_keys(unit)

    monkeypatch.setattr(Repository, "signer_keys", counted)
    for _ in range(3):
        assert (await house.put("beta", house.signed("beta"))).status_code == 204
    assert reads["all"] == 1
    assert (await house.put("beta", house.signed("later"))).status_code == 422
    house.trust("beta", "later", model="of-beta-too")
    assert (await house.put("beta", house.signed("later"))).status_code == 204
    assert reads["all"] == 2
