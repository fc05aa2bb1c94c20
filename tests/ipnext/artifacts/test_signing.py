"""Signatures: made, kept beside the manifest in both stores, and judged by the keys that a manifest names."""

import base64
import hashlib
import json
from concurrent.futures import ThreadPoolExecutor

import pytest

from ipnext.artifacts import layout
from ipnext.artifacts.signing import check_signature, sign_digest, signature_in, write_key_pair
from ipnext.artifacts.stores.locations import open_store
from ipnext.artifacts.upload import ingest_directory
from ipnext.errors import ArtifactMissing, InvalidInput, SignatureInvalid
from ipnext.model.registry.registry import SIGNATURE_FILE
from ipnext.model.registry.signing import SignerPolicy

pytestmark = pytest.mark.trust

DIGEST, OTHER = "a" * 64, "b" * 64


@pytest.fixture
def key(tmp_path):
    """Make a key pair; the private file and the public text."""

    def make(name="key"):
        private, public = tmp_path / f"{name}.pem", tmp_path / f"{name}.pub.pem"
        write_key_pair(private, public)
        return private, public.read_text()

    return make


@pytest.fixture
def signed_directory(snapshot_directory, key):
    """A signed snapshot directory, its digest and the public key."""
    private, public = key("writer")
    directory = snapshot_directory({"weights.safetensors": b"1234"})
    manifest = json.loads((directory / "snapshot.json").read_text())
    return directory, manifest, private, public


def test_the_private_key_is_its_owner_s_alone_and_never_overwritten(key, tmp_path):
    private, public = key()
    assert private.stat().st_mode & 0o077 == 0
    assert public.startswith("-----BEGIN PUBLIC KEY-----")
    with pytest.raises(InvalidInput, match="never written over"):
        write_key_pair(private, tmp_path / "other.pem")


def test_what_an_allowed_key_signed_passes(key):
    private, public = key()
    policy = SignerPolicy(public_keys=(key("other")[1], public))
    assert check_signature(policy, DIGEST, sign_digest(DIGEST, private).content, "s").startswith("signed by ")


def test_a_second_signature_joins_the_first(key):
    (one, _), (two, public) = key("one"), key("two")
    both = sign_digest(DIGEST, one).merge(sign_digest(DIGEST, two))
    assert len(both.signatures) == 2
    assert both.merge(sign_digest(DIGEST, two)) == both
    check_signature(SignerPolicy(public_keys=(public,)), DIGEST, both.content, "s")


@pytest.mark.parametrize(
    "junk",
    [
        {"keyid": "x", "sig": "!!!"},
        {"keyid": "x", "sig": "AAAA"},
        {"keyid": "KEY", "sig": "AAAA"},
        {"keyid": "KEY", "sig": "!!!"},
        {"keyid": "", "sig": ""},
        {"keyid": 7, "sig": None},
        {"sig": "AAAA", "more": 1},
        "text",
    ],
)
def test_a_signature_that_is_wrong_spoils_no_right_one(key, junk):
    private, public = key()
    content = json.loads(sign_digest(DIGEST, private).content)
    (right,) = content["signatures"]
    if isinstance(junk, dict) and junk.get("keyid") == "KEY":
        junk = junk | {"keyid": right["keyid"]}
    for entries in ([junk, right], [right, junk], [junk, junk, right, right]):
        found = json.dumps(content | {"signatures": entries}).encode()
        assert check_signature(SignerPolicy(public_keys=(public,)), DIGEST, found, "s").startswith("signed by ")


def test_no_signature_takes_the_place_of_another(key):
    right = sign_digest(DIGEST, key()[0])
    junk = [right.signatures[0].model_copy(update={"sig": "AAAA"})]
    junk += [junk[0].model_copy(update={"keyid": f"k{n}"}) for n in range(40)]
    joined = right.model_copy(update={"signatures": tuple(junk)}).merge(right)
    assert {*joined.signatures} == {*junk, *right.signatures}


def test_another_key_is_refused_and_both_are_named(key):
    private, _ = key("mine")
    with pytest.raises(SignatureInvalid, match="no valid signature by an allowed key"):
        check_signature(
            SignerPolicy(public_keys=(key("theirs")[1],)), DIGEST, sign_digest(DIGEST, private).content, "s"
        )


def test_the_signature_of_another_snapshot_is_refused(key):
    private, public = key()
    with pytest.raises(SignatureInvalid, match=r"is of snapshot aaaa.* this one is bbbb"):
        check_signature(SignerPolicy(public_keys=(public,)), OTHER, sign_digest(DIGEST, private).content, "s")


def test_a_statement_that_was_changed_under_a_good_signature_is_refused(key):
    private, public = key()
    forged = json.loads(sign_digest(DIGEST, private).content)
    forged["payload"] = json.loads(sign_digest(OTHER, private).content)["payload"]
    with pytest.raises(SignatureInvalid, match="no valid signature"):
        check_signature(SignerPolicy(public_keys=(public,)), OTHER, json.dumps(forged).encode(), "s")


def envelope(payload):
    return json.dumps({"payload": payload, "signatures": [{"keyid": "k", "sig": "AAAA"}]}).encode()


@pytest.mark.parametrize(
    "content",
    [b"", b"{}", b"no json", b'{"payload": "!", "signatures": []}', envelope("!"), envelope("A"), envelope("\u00e9")],
)
def test_what_is_no_envelope_is_refused(key, content):
    with pytest.raises(SignatureInvalid, match="can't be read"):
        check_signature(SignerPolicy(public_keys=(key()[1],)), DIGEST, content, "s")


def test_a_payload_that_is_nested_too_deeply_is_of_no_snapshot(key):
    content = envelope(base64.b64encode(b"[" * 3000).decode())
    with pytest.raises(SignatureInvalid, match="is of snapshot none"):
        check_signature(SignerPolicy(public_keys=(key()[1],)), DIGEST, content, "s")


def test_a_missing_signature_is_refused_only_where_one_is_required(key):
    _, public = key()
    with pytest.raises(SignatureInvalid, match="has no signature"):
        check_signature(SignerPolicy(public_keys=(public,)), DIGEST, None, "s")
    assert "not signed" in check_signature(SignerPolicy(public_keys=(public,), required=False), DIGEST, None, "s")
    assert check_signature(None, DIGEST, None, "s")


def test_a_key_that_is_none_is_refused(key, tmp_path):
    private, _ = key()
    broken = "-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n"
    with pytest.raises(SignatureInvalid, match=r"publicKeys\.0"):
        check_signature(SignerPolicy(public_keys=(broken,)), DIGEST, sign_digest(DIGEST, private).content, "s")
    with pytest.raises(ValueError, match=r"publicKeys\.0: begins with '-----BEGIN PRIVATE"):
        SignerPolicy(public_keys=(private.read_text(),))
    (tmp_path / "text.pem").write_text("nothing")
    with pytest.raises(InvalidInput, match="--key"):
        sign_digest(DIGEST, tmp_path / "text.pem")


def test_a_signature_travels_with_its_snapshot_and_leaves_the_digest_as_it_is(store, signed_directory, tmp_path):
    directory, _, private, public = signed_directory
    bare = ingest_directory(store, directory)
    assert store.signature(bare.uri) is None
    (directory / SIGNATURE_FILE).write_bytes(sign_digest(bare.manifest.digest, private).content)
    source = ingest_directory(store, directory)
    assert source == bare
    laid_out = store.fetch(source.uri, tmp_path / "cache")
    content = signature_in(laid_out)
    assert content == store.signature(source.uri)
    check_signature(SignerPolicy(public_keys=(public,)), source.manifest.digest, content, "s")


def test_a_snapshot_in_the_cache_gets_the_signature_that_came_later(store, signed_directory, tmp_path):
    directory, _, private, _ = signed_directory
    source = ingest_directory(store, directory)
    assert signature_in(store.fetch(source.uri, tmp_path / "cache")) is None
    store.put_signature(source.manifest.digest, sign_digest(source.manifest.digest, private))
    assert signature_in(store.fetch(source.uri, tmp_path / "cache")) is not None


def test_a_later_signature_takes_none_away(store, signed_directory, key):
    directory, _, private, public = signed_directory
    source = ingest_directory(store, directory)
    digest = source.manifest.digest
    store.put_signature(digest, sign_digest(digest, private))
    store.put_signature(digest, sign_digest(digest, key("second")[0]))
    check_signature(SignerPolicy(public_keys=(public,)), digest, store.signature(source.uri), "s")


def test_signatures_that_are_added_at_once_are_all_kept(store, held, signed_directory, key, monkeypatch):
    """Another process adds and removes between the look of this one and its write."""
    directory, _, private, public = signed_directory
    source = ingest_directory(store, directory)
    digest, (other, other_public), real = source.manifest.digest, key("second"), layout.signature_changes

    def overtaken(*given):
        monkeypatch.setattr(layout, "signature_changes", real)
        found = real(*given)
        open_store(store.uri, endpoint_url=held.endpoint_url).put_signature(digest, sign_digest(digest, other))
        return found

    monkeypatch.setattr(layout, "signature_changes", overtaken)
    store.put_signature(digest, sign_digest(digest, private))
    assert layout.signature_changes is real
    for one in (public, other_public):
        check_signature(SignerPolicy(public_keys=(one,)), digest, store.signature(source.uri), "s")


def test_many_writers_at_once_lose_no_signature(store, signed_directory, key):
    directory, *_ = signed_directory
    source = ingest_directory(store, directory)
    digest, keys = source.manifest.digest, [key(f"writer-{number}") for number in range(8)]
    with ThreadPoolExecutor(len(keys)) as pool:
        for done in [pool.submit(store.put_signature, digest, sign_digest(digest, private)) for private, _ in keys]:
            done.result()
    for _, public in keys:
        check_signature(SignerPolicy(public_keys=(public,)), digest, store.signature(source.uri), "s")


def test_the_same_signature_again_is_one(store, signed_directory):
    directory, _, private, _ = signed_directory
    source = ingest_directory(store, directory)
    for _ in range(2):
        store.put_signature(source.manifest.digest, sign_digest(source.manifest.digest, private))
    assert len(json.loads(store.signature(source.uri))["signatures"]) == 1


@pytest.mark.parametrize("junk", [b"", b"{}", b"\xff", b'{"signatures": []}'])
def test_junk_among_signatures_gives_way(store, held, signed_directory, junk):
    directory, _, private, public = signed_directory
    source = ingest_directory(store, directory)
    digest = source.manifest.digest
    held.put(layout.signature_key(digest, hashlib.sha256(junk).hexdigest()), junk)
    assert store.signature(source.uri) is None
    store.put_signature(digest, sign_digest(digest, private))
    check_signature(SignerPolicy(public_keys=(public,)), digest, store.signature(source.uri), "s")
    assert len([name for name in held.stored_keys() if name.startswith(layout.signatures_prefix(digest))]) == 1


def test_a_directory_with_the_signature_of_another_snapshot_is_not_taken(store, signed_directory):
    directory, _, private, _ = signed_directory
    (directory / SIGNATURE_FILE).write_bytes(sign_digest(OTHER, private).content)
    with pytest.raises(SignatureInvalid, match="belongs to another snapshot"):
        ingest_directory(store, directory)


def test_a_signature_without_its_snapshot_is_refused(store, key):
    private, _ = key()
    with pytest.raises(ArtifactMissing):
        store.put_signature(DIGEST, sign_digest(DIGEST, private))


def test_the_payload_is_an_in_toto_statement(key):
    envelope = sign_digest(DIGEST, key()[0])
    told = json.loads(base64.b64decode(envelope.payload))
    assert told["_type"] == "https://in-toto.io/Statement/v1"
    assert told["subject"] == [{"name": "snapshot.json", "digest": {"sha256": DIGEST}}]


def test_a_signature_by_another_key_is_none_where_none_is_required(key):
    (_, public), (other, _) = key("owner"), key("other")
    policy = SignerPolicy(public_keys=(public,), required=False)
    assert "no signature is required" in check_signature(policy, DIGEST, sign_digest(DIGEST, other).content, "s")
    wrong = sign_digest(OTHER, key("third")[0])
    claimed = SignerPolicy(public_keys=(key("fourth")[1],), required=False)
    with pytest.raises(SignatureInvalid):
        check_signature(claimed, DIGEST, wrong.content, "s")
