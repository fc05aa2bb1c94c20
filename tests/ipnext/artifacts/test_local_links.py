"""Links in a directory to publish or import lead to its own files, or to those of its Hugging Face cache."""

import hashlib
from pathlib import Path

import pytest

from ipnext.artifacts.checkpoints.checkpoint_import import describe_checkpoint, import_checkpoint
from ipnext.artifacts.checkpoints.reader import LocalFiles
from ipnext.artifacts.local_links import open_directory
from ipnext.errors import InvalidInput, PathNotAllowed
from tests.genai.support.checkpoints import write_llama

pytestmark = pytest.mark.trust

LEAVES = r"links lead out of it: 'notes.txt' to '.*/home'; allowed: links within .*`cp -RL .*hf NEW_DIRECTORY`"


@pytest.fixture
def directory(tmp_path):
    """A checkpoint with a link to another file of this machine."""
    found = write_llama(tmp_path / "hf")
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "secret.cfg").write_text("password")
    (found / "notes.txt").symlink_to("../home/secret.cfg")
    return found


def cached(root):
    """A checkpoint as Hugging Face's cache keeps it: links to `blobs` of the same model."""
    revision = write_llama(root / "models--org--name" / "snapshots" / "0123abcd")
    blobs = root / "models--org--name" / "blobs"
    blobs.mkdir()
    for path in sorted(revision.iterdir()):
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        path.rename(blobs / digest)
        path.symlink_to(Path("../../blobs") / digest)
    return revision


def test_a_link_that_leads_elsewhere_is_refused_before_any_file_is_read(directory, tmp_path, monkeypatch):
    def read(*_):
        raise AssertionError

    monkeypatch.setattr(LocalFiles, "open", read)
    for make in (describe_checkpoint, open_directory, lambda given: import_checkpoint(given, tmp_path / "out")):
        with pytest.raises(PathNotAllowed, match=LEAVES):
            make(directory)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", ["folder", "absolute", "missing", "chain"])
def test_every_way_out_is_named(directory, tmp_path, kind):
    (directory / "notes.txt").unlink()
    home = tmp_path / "home"
    targets = {"folder": home, "absolute": home / "secret.cfg", "missing": home / "none", "chain": directory / "first"}
    (directory / "first").symlink_to(home / "secret.cfg")
    (directory / "deep").mkdir()
    (directory / "deep" / "second").symlink_to(targets[kind])
    with pytest.raises(PathNotAllowed, match=r"'deep/second' to '.*', 'first' to '.*/home'"):
        open_directory(directory)


def test_many_links_are_counted(directory, tmp_path):
    for number in range(20):
        (directory / f"link-{number:02}").symlink_to(tmp_path / "home")
    with pytest.raises(PathNotAllowed, match=r"'link-09' to '[^']*' and 11 more; allowed"):
        open_directory(directory)


def test_a_link_that_comes_after_the_judgement_is_not_followed(directory, tmp_path):
    (directory / "notes.txt").unlink()
    (directory / "notes.txt").write_text("notes")
    files = LocalFiles(directory)
    (directory / "notes.txt").unlink()
    (directory / "notes.txt").symlink_to(tmp_path / "home" / "secret.cfg")
    with pytest.raises(PathNotAllowed):
        files.open("notes.txt")


def test_links_within_the_directory_and_circles_lead_nowhere_else(directory, tmp_path):
    (directory / "notes.txt").unlink()
    (directory / "config.json").rename(directory / "real.json")
    (directory / "config.json").symlink_to("real.json")
    (directory / "circle").symlink_to("circle")
    (tmp_path / "named").symlink_to(directory)
    imported = import_checkpoint(tmp_path / "named", tmp_path / "out")
    assert "config.json" in {file.path for file in imported.manifest.files}
    assert not (tmp_path / "out" / "config.json").is_symlink()


@pytest.mark.parametrize("link", [False, True])
def test_a_revision_of_the_hugging_face_cache_is_imported(tmp_path, link):
    revision = cached(tmp_path / "hub")
    plain = describe_checkpoint(write_llama(tmp_path / "plain")).manifest
    assert import_checkpoint(revision, tmp_path / "out", link=link).manifest.digest == plain.digest
    written = tmp_path / "out" / "model.safetensors"
    assert not written.is_symlink()
    assert written.samefile(revision / "model.safetensors") is link
    with open_directory(revision).open("config.json") as stream:
        assert stream.read() == (tmp_path / "plain" / "config.json").read_bytes()


def test_another_model_of_the_cache_is_elsewhere(tmp_path):
    revision = cached(tmp_path / "hub")
    other = tmp_path / "hub" / "models--org--private" / "blobs"
    other.mkdir(parents=True)
    (other / "0").write_text("{}")
    (revision / "extra.json").symlink_to("../../../models--org--private/blobs/0")
    with pytest.raises(PathNotAllowed, match=r"'extra.json' to '.*models--org--private/blobs'"):
        open_directory(revision)


def test_a_file_is_no_directory(directory):
    with pytest.raises(InvalidInput, match="is not a directory"):
        open_directory(directory / "config.json")
