"""Files that a snapshot may hold, and bytes that are what the manifest says."""

import pickle
from collections import Counter
from dataclasses import replace

import pytest

from activities.validation.files import check_digests, check_formats, check_paths
from activities.validation.weights.finite_weights import check_finite, check_headers
from ipnext.artifacts.native_code import read_native_signers
from ipnext.artifacts.signing import sign_digest, write_key_pair
from ipnext.model.lifecycle.status import Reason
from ipnext.model.registry.registry import ArtifactFile

pytestmark = pytest.mark.trust


def refused(results):
    return [result for result in results if not result.passed]


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".pkl", ".pt2", ".so", ".py", ""])
def test_formats_that_may_hold_code_are_refused(candidate, house, kit, suffix):
    dense = house.source(kit.DENSE, kit.weights(2), more={f"extra{suffix}": b"{}"})

    (found,) = refused(check_formats(candidate(dense=dense)))

    assert found.reason is Reason.UNSAFE_FORMAT
    assert ".safetensors" in found.message


class Signing:
    """Signs every snapshot of a candidate; keys have names."""

    def __init__(self, root):
        self._root = root

    def __call__(self, candidate, name):
        self.public(name)
        for snapshot in candidate.snapshots.values():
            candidate.artifacts.put_signature(snapshot.digest, sign_digest(snapshot.digest, self._root / f"{name}.pem"))

    def public(self, name):
        if not (self._root / f"{name}.pem").exists():
            write_key_pair(self._root / f"{name}.pem", self._root / f"{name}.pub.pem")
        return (self._root / f"{name}.pub.pem").read_text()


@pytest.fixture
def sign(tmp_path):
    return Signing(tmp_path)


@pytest.fixture
def signers(tmp_path, sign):
    """Whose libraries the operator lets run."""
    sign.public("trusted")
    return read_native_signers(tmp_path / "trusted.pub.pem")


def with_library(house, kit, content=b"\x7fELF and more"):
    return house.source(kit.DENSE, kit.weights(2), more={"library.so": content})


def asking(kit, **settings):
    """The manifest's parts, with engine settings for `dense`."""
    parts = kit.manifest("ranker")["spec"]["parts"]
    return {"parts": [{**part, "settings": settings} if part["name"] == "dense" else part for part in parts]}


@pytest.mark.parametrize("settings", [{"compile": True}, {"compile": {"tolerance": 1e-5}}, {"compile": {}}])
def test_a_compiled_library_passes_if_the_manifest_asks_for_it_and_a_trusted_key_signed_it(
    candidate, house, kit, signers, sign, settings
):
    found = candidate(dense=with_library(house, kit), spec=asking(kit, **settings), native_signers=signers)
    sign(found, "trusted")
    assert refused(check_formats(found)) == []


def test_a_compiled_library_that_no_trusted_key_signed_is_refused(candidate, house, kit, signers, sign):
    """Not even if the manifest names the key that did sign it: who may apply a manifest names those."""
    ours = asking(kit, compile=True) | {"validation": {"signers": {"publicKeys": [sign.public("stranger")]}}}
    given = candidate(dense=with_library(house, kit), spec=ours, native_signers=signers)
    (unsigned,) = refused(check_formats(given))
    assert "has no signature, and IPNEXT_NATIVE_LIBRARY_KEYS_FILE requires one" in unsigned.message
    sign(given, "stranger")
    (signed_by_another,) = refused(check_formats(given))
    assert signed_by_another.reason is Reason.UNSAFE_FORMAT
    assert "no valid signature by an allowed key" in signed_by_another.message
    sign(given, "trusted")
    assert refused(check_formats(given)) == []


def test_a_compiled_library_is_refused_unless_the_operator_names_keys(candidate, house, kit):
    found = candidate(dense=with_library(house, kit), spec=asking(kit, compile=True))
    (result,) = refused(check_formats(found))
    assert result.reason is Reason.UNSAFE_FORMAT
    assert "IPNEXT_NATIVE_LIBRARY_KEYS_FILE" in result.message


@pytest.mark.parametrize("settings", [{}, {"compile": False}, {"threads": 2}])
def test_a_compiled_library_is_refused_where_the_manifest_does_not_ask_for_it(
    candidate, house, kit, signers, sign, settings
):
    given = candidate(dense=with_library(house, kit), spec=asking(kit, **settings), native_signers=signers)
    sign(given, "trusted")
    (found,) = refused(check_formats(given))
    assert found.reason is Reason.UNSAFE_FORMAT
    assert found.message == "is native code; hosts run it only if settings.compile of part 'dense' asks for it"


def test_asking_for_a_library_lets_no_other_code_pass(candidate, house, kit, signers, sign):
    asked = asking(kit, compile=True)
    other = house.source(kit.DENSE, kit.weights(2), more={"other.so": b"\x7fELF"})
    under = house.source(kit.DENSE, kit.weights(2), more={"library.SO": b"\x7fELF"})
    sparse = house.source(kit.SPARSE, kit.weights(1), more={"library.so": b"\x7fELF"})
    for sources in ({"dense": other}, {"dense": under}, {"sparse": sparse}):
        given = candidate(**sources, spec=asked, native_signers=signers)
        sign(given, "trusted")
        assert len(refused(check_formats(given))) == 1, sources
    pickled = candidate(dense=with_library(house, kit, b"\x80\x04"), spec=asked, native_signers=signers)
    sign(pickled, "trusted")
    (found,) = refused(check_formats(pickled))
    assert found.message == "is no native library under the name of one"


@pytest.mark.parametrize("protocol", [2, 3, 4, 5])
def test_a_pickle_under_another_name_is_refused(candidate, house, kit, protocol):
    dense = house.source(kit.DENSE, kit.weights(2), more={"notes.txt": pickle.dumps({"a": 1}, protocol=protocol)})

    (found,) = refused(check_formats(candidate(dense=dense)))

    assert "is a pickle under the name of .txt" in found.message


def test_json_that_is_none_is_refused(candidate, house, kit):
    dense = house.source(kit.DENSE, kit.weights(2), more={"config.json": b"import os"})

    (found,) = refused(check_formats(candidate(dense=dense)))

    assert "is not JSON" in found.message


@pytest.mark.parametrize(
    "path",
    [
        *("/etc/passwd", "../up.json", "a//b.json", "a\\b.json", "C:/x.json"),
        *("snapshot.json", "snapshot.json.sig", ".seen.json", ".seen.json/a.json"),
    ],
)
def test_paths_that_leave_the_directory_or_are_ours_are_refused(candidate, path):
    given = candidate()
    file = ArtifactFile(path=path, sha256="0" * 64, size_bytes=1)
    dense = given.snapshots["dense"]
    manifest = dense.manifest.model_copy(update={"files": (file,)})
    broken = {**given.snapshots, "dense": dense.model_copy(update={"manifest": manifest})}

    (found,) = refused(check_paths(type(given)(**{**vars(given), "snapshots": broken})))

    assert (found.subject, found.reason) == ("dense", Reason.UNSAFE_FORMAT)


def test_a_flipped_byte_is_found_by_its_digest(candidate, house):
    given = candidate()
    file = given.snapshots["dense"].manifest.files[-1]
    blob = house.root / "artifacts" / "blobs" / file.sha256
    content = bytearray(blob.read_bytes())
    content[-1] ^= 1
    blob.chmod(0o644)
    blob.write_bytes(content)

    (found,) = refused(check_digests(given))

    assert (found.subject, found.reason) == (f"dense/{file.path}", Reason.ARTIFACT_DIGEST_MISMATCH)
    assert file.sha256 in found.message


def test_a_file_that_is_gone_is_named(candidate, house):
    given = candidate()
    file = given.snapshots["sparse"].manifest.files[0]
    (house.root / "artifacts" / "blobs" / file.sha256).unlink()

    found = refused(check_digests(given))

    assert {result.reason for result in found} == {Reason.ARTIFACT_MISSING}


class Openings:
    """Counts the openings of each blob of an artifact store."""

    def __init__(self, artifacts, monkeypatch):
        self.of = Counter()
        opened = artifacts.open_blob

        def count(sha256):
            self.of[sha256] += 1
            return opened(sha256)

        monkeypatch.setattr(artifacts, "open_blob", count)


def test_a_blob_of_many_names_is_read_once_by_each_check(candidate, house, monkeypatch):
    given = candidate()
    dense = given.snapshots["dense"]
    weights = next(file for file in dense.manifest.files if file.path == "weights.safetensors")
    names = tuple(weights.model_copy(update={"path": f"{n}.safetensors"}) for n in range(20))
    manifest = dense.manifest.model_copy(update={"files": (*dense.manifest.files, *names)})
    many = replace(given, snapshots={"dense": dense.model_copy(update={"manifest": manifest})})
    for check in (check_digests, check_formats, check_finite, check_headers):
        openings = Openings(house.artifacts, monkeypatch)
        results = tuple(check(many))
        assert refused(results) == []
        assert len([result for result in results if "safetensors" in result.subject]) == 21
        assert set(openings.of.values()) == {1}, check


@pytest.mark.parametrize(
    ("paths", "words"),
    [
        ([f"n/{number}.txt" for number in range(200)], "'n/64.txt' is one file of *.txt too many"),
        (["other.json"], "'other.json' is no file of such a snapshot; allowed for engine 'torch': program.json"),
    ],
)
def test_files_that_no_snapshot_of_the_engine_has_are_refused(candidate, paths, words):
    given = candidate()
    dense = given.snapshots["dense"]
    more = tuple(dense.manifest.files[0].model_copy(update={"path": path}) for path in paths)
    manifest = dense.manifest.model_copy(update={"files": (*dense.manifest.files, *more)})
    broken = replace(given, snapshots={**given.snapshots, "dense": dense.model_copy(update={"manifest": manifest})})
    (found,) = refused(check_paths(broken))
    assert (found.subject, found.reason) == ("dense", Reason.UNSAFE_FORMAT)
    assert words in found.message
