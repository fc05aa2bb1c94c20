"""The secret that a listener shares with its callers by a file."""

import os
import stat
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from ipnext.components import caller_proof
from ipnext.components.caller_proof import check_proof, keep_proof, proof_file, read_proof
from ipnext.errors import Forbidden


def test_a_proof_is_kept_for_the_next_process_and_is_this_users_alone(tmp_path):
    file = proof_file(tmp_path / "agent.sock")
    assert file.name == "agent.proof"
    assert read_proof(file) is None
    first = keep_proof(file)
    assert len(first) == 43
    assert keep_proof(file) == read_proof(file) == first
    assert stat.S_IMODE(file.stat().st_mode) == 0o600
    assert list(tmp_path.iterdir()) == [file]


def test_listener_and_caller_that_create_it_at_once_get_the_same_one(tmp_path, monkeypatch):
    file = tmp_path / "agent.proof"
    monkeypatch.setattr(caller_proof, "read_proof", lambda _: None)  # both find none
    with ThreadPoolExecutor(8) as pool:
        assert len(set(pool.map(lambda _: keep_proof(file), range(64)))) == 1


def test_each_listener_has_a_proof_of_its_own(tmp_path):
    proofs = {keep_proof(proof_file(tmp_path / f"{name}.sock")) for name in ("agent", "router", "gateway")}
    assert len(proofs) == 3


@pytest.mark.parametrize("given", [None, "", "guessed", "ü", 1, b"right"])
def test_another_one_is_refused(given):
    check_proof("right", "right")
    with pytest.raises(Forbidden, match="has not proved itself") as caught:
        check_proof("right", given)
    assert caught.value.policy == "components"


def test_a_file_that_cannot_be_read_is_no_proof(tmp_path):
    assert read_proof(tmp_path) is None
    assert read_proof(Path("/proc/1/mem/x")) is None


def test_a_proof_behind_a_link_is_not_read(tmp_path):
    keep_proof(tmp_path / "supervisor.proof")
    (tmp_path / "e").mkdir()
    (tmp_path / "e" / "router.proof").symlink_to(tmp_path / "supervisor.proof")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "host").symlink_to(tmp_path)
    assert read_proof(tmp_path / "e" / "router.proof") is None
    assert read_proof(tmp_path / "run" / "host" / "supervisor.proof") is None
    assert read_proof(tmp_path / "supervisor.proof") is not None


def test_a_proof_that_others_may_read_or_write_is_none(tmp_path):
    file = tmp_path / "router.proof"
    keep_proof(file)
    file.chmod(0o640)
    assert read_proof(file) is None
    with pytest.raises(PermissionError, match="not a file of this user alone"):
        keep_proof(file)


def test_a_pipe_is_no_proof_and_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "router.proof", 0o600)
    assert read_proof(tmp_path / "router.proof") is None
