"""Signatures that the unmodified cosign pushes to a real registry, and hostile lists of signatures."""

import base64
import hashlib
import json
from collections.abc import Iterator
from contextlib import closing

import httpx
import pytest

from ipnext.artifacts.cosign import PAYLOAD_MEDIA_TYPE, PREDICATE_TYPE, SIGNATURE_ANNOTATION, STATEMENT_TYPES
from ipnext.artifacts.signing import find_cosigner, read_keys
from ipnext.components.bounded_http import DeadlineTransport
from ipnext.errors import SignatureInvalid, Unavailable
from ipnext.model.manifest.sources import OciStream
from ipnext.model.registry.signing import PAYLOAD_TYPE
from ipnext.model.value import canonical_json
from ipnext.sources.access import ReadAccess
from ipnext.sources.oci import blob as oci_blob
from ipnext.sources.oci.image import IMAGE, INDEX
from ipnext.sources.oci.kind import OciKind
from ipnext.sources.oci.registry import Connections
from ipnext.sources.port import StreamRequest
from tests.ipnext.conftest import write_snapshot
from tests.ipnext.sources.oci.fake_registry import FakeRegistry, digest_of, image, layer
from tests.ipnext.sources.oci.registry_server import Cosign, RegistryServer, running_registry

pytestmark = pytest.mark.trust
NAME = "team/ranker"
BUNDLE = "application/vnd.dev.sigstore.bundle.v0.3+json"


@pytest.fixture(scope="module")
def real(tmp_path_factory, subprocesses) -> Iterator[RegistryServer]:
    with running_registry(tmp_path_factory.mktemp("registry")) as server:
        yield server


@pytest.fixture
def cosign(tmp_path, subprocesses) -> Cosign:
    return Cosign(tmp_path / "keys")


def encode(document) -> bytes:
    return json.dumps(document).encode()


def write_canonical(directory, *contents):
    """A snapshot directory whose manifest is as IPnext's tools write it."""
    manifest = write_snapshot(directory, *contents)
    (directory / "snapshot.json").write_text(canonical_json(manifest))
    return manifest


def open_version(server, tag):
    with closing(DeadlineTransport(None)) as transport:
        access = ReadAccess(urls=(server.base,))
        settings = OciStream(repository=f"{server.host}/{NAME}", tag=tag)
        (source,) = OciKind(Connections(transport)).connect([StreamRequest(settings, access)])
        (version,) = source.list_since("").versions
        yield version, source.open(version)


@pytest.fixture
def opened(real):
    """Open the version of a tag; connections end with the test."""
    running = []

    def open_tag(tag):
        steps = open_version(real, tag)
        running.append(steps)
        return next(steps)

    yield open_tag
    for steps in running:
        steps.close()


def judge(found, digest, *publics):
    return [find_cosigner(one.proof, one.sig, digest, read_keys(publics).values()) for one in found]


def test_what_cosign_signs_after_the_push_is_a_signature_of_the_snapshot(real, opened, cosign, tmp_path):
    manifest = write_canonical(tmp_path / "snapshot", b"weights")
    real.push_by_oras(NAME, "signed", tmp_path / "snapshot")
    version, files = opened("signed")
    assert files.find_signatures() == ()
    cosign.sign(f"{real.host}/{NAME}@{version.place}")
    other = Cosign(tmp_path / "other")
    other.sign(f"{real.host}/{NAME}@{version.place}")
    found = files.find_signatures()
    assert [one is not None for one in judge(found, manifest.digest, cosign.public)] == [True, False]
    assert [one is not None for one in judge(found, manifest.digest, other.public)] == [False, True]
    with pytest.raises(SignatureInvalid, match=r"snapshot\.json of the signed image"):
        judge(found, "0" * 64, cosign.public)


def test_what_cosign_signs_as_a_bundle_is_a_signature_of_the_snapshot(real, opened, cosign, tmp_path):
    manifest = write_canonical(tmp_path / "snapshot", b"weights of a bundle")
    real.push_by_oras(NAME, "bundled", tmp_path / "snapshot")
    version, files = opened("bundled")
    image = f"{real.host}/{NAME}@{version.place}"
    cosign.bundle(image, "https://slsa.dev/provenance/v1")
    assert files.find_signatures() == (), "an attestation by the same key is no signature"
    cosign.bundle(image, PREDICATE_TYPE)
    other = Cosign(tmp_path / "other")
    other.bundle(image, PREDICATE_TYPE)
    cosign.sign(image)
    simple, *bundles = files.find_signatures()
    assert (simple.proof.dsse, [one.proof.dsse for one in bundles]) == (False, [True, True])
    own, others = (judge(bundles, manifest.digest, one.public) for one in (cosign, other))
    assert [one is None for one in own] == [one is not None for one in others]
    assert sorted(one is None for one in own) == [False, True]
    with pytest.raises(SignatureInvalid, match=r"snapshot\.json of the signed image"):
        judge(bundles, "0" * 64, cosign.public)


def test_a_signed_index_counts_for_its_image(real, opened, cosign, tmp_path):
    manifest = write_canonical(tmp_path / "snapshot", b"weights of an index")
    files = {path.name: path.read_bytes() for path in (tmp_path / "snapshot").iterdir()}
    inner = real.push(NAME, "inner", files)
    kind = "application/vnd.oci.image.manifest.v1+json"
    size = len(httpx.get(f"{real.base}/v2/{NAME}/manifests/inner", headers={"Accept": kind}, trust_env=False).content)
    described = {"mediaType": kind, "digest": inner, "size": size}
    index = json.dumps({"schemaVersion": 2, "mediaType": INDEX, "manifests": [described]}).encode()
    url = f"{real.base}/v2/{NAME}/manifests/indexed"
    httpx.put(url, content=index, headers={"Content-Type": INDEX}, trust_env=False).raise_for_status()
    cosign.sign(f"{real.host}/{NAME}:indexed")
    _, found = opened("indexed")
    assert judge(found.find_signatures(), manifest.digest, cosign.public) != [None]


# Lists that are not cosign's


@pytest.fixture
def registry(monkeypatch) -> FakeRegistry:
    monkeypatch.setattr(oci_blob, "PAUSES_SECONDS", (0.0,))
    return FakeRegistry()


def push(registry, **changes):
    """Push an image with an unjudged signature; its files, and the tag of its signatures."""
    digest = registry.push({"snapshot.json": b"{}"})
    tag = f"{digest.replace(':', '-')}.sig"
    registry.put(image([signature(registry, **changes)]), tag)
    registry.tags["prod"] = digest
    return registry.open(), tag


def signature(registry, content=b"{}", **changes):
    registry.blobs[digest_of(content)] = content
    return layer(content, "", PAYLOAD_MEDIA_TYPE, annotations={SIGNATURE_ANNOTATION: "AAAA"}) | changes


def test_an_unjudged_signature_is_returned_with_what_it_is_over(registry):
    files, _ = push(registry)
    ((sig, proof),) = files.find_signatures()
    assert (sig, base64.b64decode(proof.payload)) == ("AAAA", b"{}")
    assert hashlib.sha256(base64.b64decode(proof.documents[0])).hexdigest() == registry.tags["prod"].partition(":")[2]


@pytest.mark.parametrize(
    "changes",
    [
        {"mediaType": "application/vnd.dsse.envelope.v1+json"},
        {"annotations": {}},
        {"annotations": {SIGNATURE_ANNOTATION: "A" * 5000}},
        {"size": 10**9},
        {"size": 0},
    ],
)
def test_a_layer_that_is_no_signature_of_ours_is_left(registry, changes):
    files, _ = push(registry, **changes)
    assert files.find_signatures() == ()


def test_of_many_signatures_the_newest_are_read(registry):
    files, tag = push(registry)
    registry.put(image([signature(registry, str(number).encode()) for number in range(100)]), tag)
    found = [base64.b64decode(one.proof.payload) for one in files.find_signatures()]
    assert found == [str(number).encode() for number in range(68, 100)]


@pytest.mark.parametrize("content", [b"{", b"[]", b"{}", b'{"schemaVersion": 2, "layers": [1]}', b" " * 300_000])
def test_a_list_that_can_not_be_read_is_a_wrong_signature(registry, content):
    files, tag = push(registry)
    registry.put(content, tag)
    with pytest.raises(SignatureInvalid):
        files.find_signatures()


def test_a_payload_with_another_digest_is_a_wrong_signature(registry):
    files, _ = push(registry)
    registry.blobs[digest_of(b"{}")] = b"[]"
    with pytest.raises(SignatureInvalid, match="can't be read"):
        files.find_signatures()


def test_an_image_that_is_too_large_to_keep_is_refused_by_its_size(registry):
    digest = registry.push({f"file-{number}": b"" for number in range(2000)})
    registry.put(image([signature(registry)]), f"{digest.replace(':', '-')}.sig")
    registry.tags["prod"] = digest
    with pytest.raises(SignatureInvalid, match="Push fewer files"):
        registry.open().find_signatures()


# Bundles that refer to an image


def bundle_of(document, media_type=BUNDLE):
    return encode({"mediaType": media_type, "dsseEnvelope": {"payloadType": PAYLOAD_TYPE} | document})


def signed(number=0, predicate_type=PREDICATE_TYPE, **changes):
    """A bundle's envelope with an unjudged signature."""
    subject = [{"digest": {"sha256": f"{number:064x}"}}]
    statement = {"_type": STATEMENT_TYPES[0], "subject": subject, "predicateType": predicate_type, "predicate": {}}
    payload = base64.b64encode(encode(statement)).decode()
    return {"payload": payload, "signatures": [{"sig": "AAAA"}]} | changes


def refer(registry, *contents, kind=BUNDLE, by_tag=False, **changes):
    """Push bundles that refer to the image of the tag `prod`, and the list of them; the image's files."""
    digest = registry.push({"snapshot.json": b"{}"})
    described = []
    for content in contents:
        registry.blobs[digest_of(content)] = content
        manifest = registry.put(image([layer(content, "", kind)]), "bundle")
        size = len(registry.manifests[manifest])
        described.append({"mediaType": IMAGE, "digest": manifest, "size": size, "artifactType": BUNDLE} | changes)
    index = encode({"schemaVersion": 2, "mediaType": INDEX, "manifests": described})
    if by_tag:
        registry.put(index, digest.replace(":", "-"))
    else:
        listed = {"content": index, "headers": {"Content-Type": f"{INDEX}; charset=utf-8"}}
        registry.answers[f"referrers/{digest}"] = lambda _: httpx.Response(200, **listed)
    registry.tags["prod"] = digest
    return registry.open()


@pytest.mark.parametrize("by_tag", [True, False])
def test_bundles_are_found_by_the_registrys_list_or_by_its_tag(registry, by_tag):
    found = refer(registry, bundle_of(signed()), by_tag=by_tag, artifactType="").find_signatures()
    assert [(one.sig, one.proof.dsse) for one in found] == [("AAAA", True)]


@pytest.mark.parametrize(
    "content",
    [
        b"{",
        b"[]",
        b"[" * 30_000,
        bundle_of(signed(predicate_type="https://slsa.dev/provenance/v1")),
        bundle_of(signed(payload="no base64")),
        bundle_of(signed(payload=base64.b64encode(b"[]").decode())),
        bundle_of(signed(payloadType="text/plain")),
        bundle_of(signed(signatures=[])),
        bundle_of(signed(signatures=[{"sig": "AAAA"}, {"sig": "BBBB"}])),
        bundle_of(signed(signatures=[{"sig": "A" * 5000}])),
        encode({"messageSignature": {"signature": "AAAA"}}),
    ],
)
def test_what_refers_to_an_image_and_signs_nothing_is_left(registry, content):
    (one,) = refer(registry, content, bundle_of(signed())).find_signatures()
    assert one.sig == "AAAA"


@pytest.mark.parametrize(
    "changes",
    [{"artifactType": "application/spdx+json"}, {"size": 10**9}, {"kind": "application/vnd.dsse.envelope.v1+json"}],
)
def test_what_is_no_bundle_is_not_read(registry, changes):
    assert refer(registry, bundle_of(signed()), **changes).find_signatures() == ()


def test_of_many_bundles_a_bounded_number_is_read(registry):
    many = [bundle_of(signed(number, "https://slsa.dev/provenance/v1")) for number in range(60)]
    many += [bundle_of(signed(number)) for number in range(60)]
    found = refer(registry, *many).find_signatures()
    told = [json.loads(base64.b64decode(one.proof.payload))["subject"][0]["digest"]["sha256"] for one in found]
    assert told == [f"{number:064x}" for number in range(32)]
    assert len([line for line in registry.lines if "blobs/" in line]) == 60 + 32
    assert refer(registry, *[each for each in many[:60] for _ in range(2)], *many[60:]).find_signatures() == ()


def test_attestations_that_the_list_names_are_not_read(registry):
    attestation = {"annotations": {"dev.sigstore.bundle.predicateType": "https://slsa.dev/provenance/v1"}}
    assert refer(registry, bundle_of(signed()), **attestation).find_signatures() == ()
    assert not any("blobs/" in line for line in registry.lines)


@pytest.mark.parametrize("content", [b"{", b"[]", b" " * 300_000])
def test_a_list_of_bundles_that_can_not_be_read_is_a_wrong_signature(registry, content):
    files = refer(registry, bundle_of(signed()), by_tag=True)
    registry.put(content, registry.tags["prod"].replace(":", "-"))
    with pytest.raises(SignatureInvalid):
        files.find_signatures()


@pytest.mark.parametrize("broken", ["bytes", "blob", "manifest", "size", "digest", "form"])
def test_a_broken_bundle_hides_no_other_one(registry, broken):
    """Whoever may push can add one, and a list in a tag keeps what was deleted."""
    content, right = bundle_of(signed(1)), bundle_of(signed(2))
    files = refer(registry, content, right)
    manifest = next(digest for digest, found in registry.manifests.items() if digest_of(content).encode() in found)
    assert len(files.find_signatures()) == 2
    if broken == "bytes":
        registry.blobs[digest_of(content)] = content.replace(b"AAAA", b"BBBB")
    elif broken == "blob":
        del registry.blobs[digest_of(content)]
    elif broken == "manifest":
        del registry.manifests[manifest]
    elif broken == "size":
        registry.manifests[manifest] += b" " * 20_000
    elif broken == "digest":
        registry.manifests[manifest] = registry.manifests[manifest].replace(b"sha256:", b"sha512:")
    else:
        registry.manifests[manifest] = b"{"
    (one,) = files.find_signatures()
    assert json.loads(base64.b64decode(one.proof.payload))["subject"][0]["digest"]["sha256"] == f"{2:064x}"


def test_a_page_in_place_of_the_registrys_list_is_no_list(registry):
    files = refer(registry, bundle_of(signed()), by_tag=True)
    page = {"content": b"<html>", "headers": {"Content-Type": "text/html"}}
    registry.answers[f"referrers/{registry.tags['prod']}"] = lambda _: httpx.Response(200, **page)
    assert len(files.find_signatures()) == 1


def test_a_list_of_bundles_that_does_not_come_is_asked_for_again(registry):
    files = refer(registry, bundle_of(signed()))
    registry.answers[f"referrers/{registry.tags['prod']}"] = lambda _: httpx.Response(503)
    with pytest.raises(Unavailable):
        files.find_signatures()


def test_a_registry_that_does_not_answer_is_tried_again(registry):
    files, tag = push(registry)
    registry.answers[f"manifests/{tag}"] = lambda _: httpx.Response(503)
    with pytest.raises(Unavailable):
        files.find_signatures()
