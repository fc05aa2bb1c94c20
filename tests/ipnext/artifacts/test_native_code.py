"""Whose native code may run: the operator's file of keys."""

import pytest
import structlog

from ipnext.artifacts.native_code import read_native_signers
from ipnext.artifacts.signing import write_key_pair
from ipnext.errors import InvalidInput
from workflows import worker

pytestmark = pytest.mark.trust


@pytest.fixture
def keys(tmp_path):
    found = []
    for name in ("one", "two"):
        write_key_pair(tmp_path / f"{name}.pem", tmp_path / f"{name}.pub.pem")
        found.append((tmp_path / f"{name}.pub.pem").read_text())
    return found


def test_without_a_file_nobody_is_trusted():
    assert read_native_signers(None) is None


def test_a_file_has_keys_one_after_another_and_words_between_them(tmp_path, keys):
    file = tmp_path / "all.pem"
    file.write_text(f"# of the build\n{keys[0]}\n# of the release\n{keys[1]}")
    assert [key.strip() for key in read_native_signers(file).public_keys] == [key.strip() for key in keys]


@pytest.mark.parametrize(
    "content",
    [
        b"",
        b"true",
        b"\xff\xfe",
        b"-----BEGIN PUBLIC KEY-----\nAAAA\n-----END PUBLIC KEY-----\n",
        b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n",
    ],
)
def test_a_file_without_keys_is_refused_by_the_name_of_its_setting(tmp_path, content):
    (tmp_path / "keys.pem").write_bytes(content)
    with pytest.raises(
        InvalidInput, match=r"IPNEXT_NATIVE_LIBRARY_KEYS_FILE: .*keys\.pem: .*; allowed: a file with 1 to 32"
    ):
        read_native_signers(tmp_path / "keys.pem")


def test_a_file_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(InvalidInput, match="No such file"):
        read_native_signers(tmp_path / "keys.pem")


def test_a_worker_with_a_wrong_file_does_not_start(tmp_path, monkeypatch):
    monkeypatch.setenv("IPNEXT_NATIVE_LIBRARY_KEYS_FILE", str(tmp_path / "keys.pem"))
    monkeypatch.setattr("sys.argv", ["worker"])
    with structlog.testing.capture_logs() as logs:
        assert worker.main() == InvalidInput.exit_status
    assert "IPNEXT_NATIVE_LIBRARY_KEYS_FILE" in logs[-1]["error"]
