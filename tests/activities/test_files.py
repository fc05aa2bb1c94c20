"""Files that a snapshot may hold, and bytes that are what the manifest says."""

import pickle

import pytest

from activities.files import check_digests, check_formats, check_paths
from ipnext.model.registry import ArtifactFile
from ipnext.model.status import Reason


def refused(results):
    return [result for result in results if not result.passed]


@pytest.mark.parametrize("suffix", [".pt", ".bin", ".pkl", ".pt2", ".so", ".py", ""])
def test_formats_that_may_hold_code_are_refused(candidate, house, kit, suffix):
    dense = house.source(kit.DENSE, kit.weights(2), more={f"extra{suffix}": b"{}"})

    (found,) = refused(check_formats(candidate(dense=dense)))

    assert found.reason is Reason.UNSAFE_FORMAT
    assert ".safetensors" in found.message


def with_library(house, kit, content=b"\x7fELF and more"):
    return house.source(kit.DENSE, kit.weights(2), more={"library.so": content})


def asking(kit, **settings):
    """The manifest's parts, with engine settings for `dense`."""
    parts = kit.manifest("ranker")["spec"]["parts"]
    return {"parts": [{**part, "settings": settings} if part["name"] == "dense" else part for part in parts]}


@pytest.mark.parametrize("settings", [{"compile": True}, {"compile": {"tolerance": 1e-5}}, {"compile": {}}])
def test_a_compiled_library_passes_where_the_manifest_asks_for_it(candidate, house, kit, settings):
    found = candidate(dense=with_library(house, kit), spec=asking(kit, **settings), native_libraries=True)
    assert refused(check_formats(found)) == []


def test_a_compiled_library_is_refused_unless_the_operator_lets_libraries_run(candidate, house, kit):
    found = candidate(dense=with_library(house, kit), spec=asking(kit, compile=True))
    (result,) = refused(check_formats(found))
    assert result.reason is Reason.UNSAFE_FORMAT
    assert "IPNEXT_NATIVE_LIBRARIES=true" in result.message


@pytest.mark.parametrize("settings", [{}, {"compile": False}, {"threads": 2}])
def test_a_compiled_library_is_refused_where_the_manifest_does_not_ask_for_it(candidate, house, kit, settings):
    given = candidate(dense=with_library(house, kit), spec=asking(kit, **settings), native_libraries=True)
    (found,) = refused(check_formats(given))
    assert found.reason is Reason.UNSAFE_FORMAT
    assert found.message == "is native code; hosts run it only where settings.compile of part 'dense' asks for it"


def test_asking_for_a_library_lets_no_other_code_pass(candidate, house, kit):
    asked = asking(kit, compile=True)
    other = house.source(kit.DENSE, kit.weights(2), more={"other.so": b"\x7fELF"})
    under = house.source(kit.DENSE, kit.weights(2), more={"library.SO": b"\x7fELF"})
    sparse = house.source(kit.SPARSE, kit.weights(1), more={"library.so": b"\x7fELF"})
    for sources in ({"dense": other}, {"dense": under}, {"sparse": sparse}):
        assert len(refused(check_formats(candidate(**sources, spec=asked, native_libraries=True)))) == 1, sources
    pickled = candidate(dense=with_library(house, kit, b"\x80\x04"), spec=asked, native_libraries=True)
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


@pytest.mark.parametrize("path", ["/etc/passwd", "../up.json", "a//b.json", "a\\b.json", "C:/x.json", "snapshot.json"])
def test_paths_that_leave_the_directory_are_refused(candidate, path):
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
