"""Signatures by cosign: what leads from a signed image to a snapshot, judged without a registry."""

import base64
import hashlib
import json

import pytest
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec

from ipnext.artifacts.cosign import PREDICATE_TYPE, STATEMENT_TYPES
from ipnext.artifacts.signing import check_signature, find_cosigner, read_keys
from ipnext.errors import SignatureInvalid
from ipnext.model.registry.signing import CosignProof, EnvelopeSignature, SignerPolicy, envelope_of, statement

pytestmark = pytest.mark.trust

DIGEST, OTHER = "a" * 64, "b" * 64
TITLE = "org.opencontainers.image.title"


def encode(content) -> bytes:
    return json.dumps(content).encode()


def sha(content: bytes) -> str:
    return f"sha256:{hashlib.sha256(content).hexdigest()}"


def text(content: bytes) -> str:
    return base64.b64encode(content).decode()


def image(digest=DIGEST, title="snapshot.json", **more):
    layers = [
        {"digest": f"sha256:{digest}", "size": 3, "annotations": {TITLE: title}},
        {"digest": sha(b"weights"), "size": 7, "annotations": {TITLE: "weights.safetensors"}},
    ]
    return encode({"schemaVersion": 2, "layers": layers} | more)


def payload(digest, kind="cosign container image signature"):
    identity = {"docker-reference": "registry.example.com/team/ranker"}
    return encode(
        {
            "critical": {"identity": identity, "image": {"docker-manifest-digest": digest}, "type": kind},
            "optional": None,
        }
    )


def bundled(digest, predicate_type=PREDICATE_TYPE, kind=STATEMENT_TYPES[0], subjects=1):
    subject = [{"digest": {"sha256": digest.removeprefix("sha256:")}}]
    return encode({"_type": kind, "subject": subjects * subject, "predicateType": predicate_type, "predicate": {}})


class Cosigner:
    """A key pair as cosign makes one."""

    def __init__(self) -> None:
        self._key = ec.generate_private_key(ec.SECP256R1())
        form = serialization.PublicFormat.SubjectPublicKeyInfo
        self.public = self._key.public_key().public_bytes(serialization.Encoding.PEM, form).decode()

    def sign(self, content: bytes, *documents: bytes) -> EnvelopeSignature:
        """A signature with the key's right id, whatever its content."""
        sig = text(self._key.sign(content, ec.ECDSA(hashes.SHA256())))
        proof = CosignProof(payload=text(content), documents=tuple(map(text, documents)))
        (keyid,) = read_keys([self.public])
        return EnvelopeSignature(keyid=keyid, sig=sig, cosign=proof)

    def bundle(self, content: bytes, *documents: bytes) -> EnvelopeSignature:
        """A signature of a statement in a DSSE envelope, by the encoding of its specification."""
        kind = "application/vnd.in-toto+json"
        signed = self.sign(f"DSSEv1 {len(kind)} {kind} {len(content)} ".encode() + content, *documents)
        proof = signed.cosign.model_copy(update={"payload": text(content), "dsse": True})
        return signed.model_copy(update={"cosign": proof})


@pytest.fixture
def signer():
    return Cosigner()


def judge(signer, *signatures, digest=DIGEST):
    content = envelope_of(digest, signatures).content
    return check_signature(SignerPolicy(public_keys=(signer.public,)), digest, content, "s")


def test_a_signed_image_signs_its_snapshot(signer):
    assert judge(signer, signer.sign(payload(sha(image())), image())).startswith("signed by ")


def test_a_signed_index_signs_the_snapshot_of_the_image_below_it(signer):
    index = encode({"schemaVersion": 2, "manifests": [{"digest": sha(image()), "size": 9}]})
    assert judge(signer, signer.sign(payload(sha(index)), index, image())).startswith("signed by ")


def test_the_key_is_found_among_those_that_are_trusted(signer):
    one = signer.sign(payload(sha(image())), image())
    keys = read_keys([Cosigner().public, signer.public]).values()
    assert find_cosigner(one.cosign, one.sig, DIGEST, keys) == one
    assert find_cosigner(one.cosign, one.sig, DIGEST, read_keys([Cosigner().public]).values()) is None


@pytest.mark.parametrize("kind", STATEMENT_TYPES)
def test_a_statement_of_an_image_or_index_signs_the_snapshot(signer, kind):
    index = encode({"schemaVersion": 2, "manifests": [{"digest": sha(image()), "size": 9}]})
    assert judge(signer, signer.bundle(bundled(sha(image()), kind=kind), image())).startswith("signed by ")
    assert judge(signer, signer.bundle(bundled(sha(index), kind=kind), index, image())).startswith("signed by ")


WRONG_STATEMENTS = {
    "another image": lambda: bundled(sha(image(OTHER))),
    "an attestation": lambda: bundled(sha(image()), predicate_type="https://slsa.dev/provenance/v1"),
    "another form": lambda: bundled(sha(image()), kind="https://in-toto.io/Statement/v2"),
    "two subjects": lambda: bundled(sha(image()), subjects=2),
    "no subject": lambda: bundled(sha(image()), subjects=0),
    "IPnext's own statement": lambda: statement(DIGEST),
    "a simple payload": lambda: payload(sha(image())),
    "no JSON": lambda: b"{",
}


@pytest.mark.parametrize("wrong", WRONG_STATEMENTS)
def test_a_statement_that_does_not_lead_to_the_snapshot_counts_for_nothing(signer, wrong):
    one = signer.bundle(WRONG_STATEMENTS[wrong](), image())
    with pytest.raises(SignatureInvalid):
        judge(signer, one)
    with pytest.raises(SignatureInvalid, match="can't be followed"):
        find_cosigner(one.cosign, one.sig, DIGEST, read_keys([signer.public]).values())


@pytest.mark.parametrize("dsse", [True, False])
def test_a_signature_of_one_form_is_none_of_the_other(signer, dsse):
    right = signer.sign(payload(sha(image())), image()) if dsse else signer.bundle(bundled(sha(image())), image())
    with pytest.raises(SignatureInvalid):
        judge(signer, right.model_copy(update={"cosign": right.cosign.model_copy(update={"dsse": dsse})}))


WRONG = {
    "another snapshot": lambda: (payload(sha(image(OTHER))), image(OTHER)),
    "another image": lambda: (payload(sha(image(OTHER))), image()),
    "another type": lambda: (payload(sha(image()), kind="attestation"), image()),
    "the manifest under another name": lambda: (payload(sha(image(title="README"))), image(title="README")),
    "two manifests": lambda: (
        payload(sha(image(title="snapshot.json", layers=2 * json.loads(image())["layers"][:1]))),
        image(layers=2 * json.loads(image())["layers"][:1]),
    ),
    "an image that the index has not": lambda: (payload(sha(INDEX)), INDEX, image()),
    "an index alone": lambda: (payload(sha(INDEX)), INDEX),
    "no layers": lambda: (payload(sha(encode({}))), encode({})),
    "no JSON": lambda: (payload(sha(b"{")), b"{"),
    "no payload": lambda: (b"[]", image()),
    "a payload of other fields": lambda: (encode({"critical": 1}), image()),
    "too many values": lambda: (payload(sha(b"[" * 30_000)), b"[" * 30_000),
    "the plain statement": lambda: (statement(DIGEST), image()),
}
INDEX = encode({"schemaVersion": 2, "manifests": [{"digest": sha(image(OTHER)), "size": 9}]})


@pytest.mark.parametrize("wrong", WRONG)
def test_a_signature_that_does_not_lead_to_the_snapshot_counts_for_nothing(signer, wrong):
    one = signer.sign(*WRONG[wrong]())
    with pytest.raises(SignatureInvalid):
        judge(signer, one)
    with pytest.raises(SignatureInvalid, match="can't be followed"):
        find_cosigner(one.cosign, one.sig, DIGEST, read_keys([signer.public]).values())
    judge(signer, one, signer.sign(payload(sha(image())), image()))


def test_every_changed_byte_of_payload_and_image_is_found(signer):
    right = signer.sign(payload(sha(image())), image())
    for name, content in (("payload", payload(sha(image()))), ("documents", image())):
        for place in range(len(content)):
            changed = text(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            proof = right.cosign.model_copy(update={name: changed if name == "payload" else (changed,)})
            with pytest.raises(SignatureInvalid):
                judge(signer, right.model_copy(update={"cosign": proof}))


def test_a_plain_signature_is_none_of_an_image(signer):
    right = signer.sign(payload(sha(image())), image())
    with pytest.raises(SignatureInvalid):
        judge(signer, right.model_copy(update={"cosign": None}))


@pytest.mark.parametrize(
    ("field", "value"),
    [("payload", "!"), ("documents", ("!",)), ("documents", ("AAAA" * 70_000,)), ("payload", "A" * 20_000)],
)
def test_a_proof_of_another_form_is_left_out(signer, field, value):
    right = signer.sign(payload(sha(image())), image())
    proof = right.cosign.model_copy(update={field: value})
    with pytest.raises(SignatureInvalid):
        judge(signer, right.model_copy(update={"cosign": proof}))
    judge(signer, right.model_copy(update={"cosign": proof}), right)
