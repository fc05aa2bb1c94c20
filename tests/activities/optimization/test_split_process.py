"""Cutting in a process of its own: what it gives, what it refuses, its rights, and that nothing of it is left."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
import torch
from torch import nn

from activities.optimization import split_process as cutting
from activities.optimization.split_process import CutRefused, cut_in_process
from activities.runtime import tool_process
from activities.runtime.tool_process import ToolEnded
from ipnext.model.lifecycle.status import Reason
from ipnext.model.manifest.split import SplitPolicy
from ipnext.model.registry.registry import SNAPSHOT_FILE, SnapshotManifest
from serving.confinement.landlock import Confinement
from serving.export import export_model
from tests.processes import command_line, gone, stopped
from tests.serving.confinement.test_landlock import needs_landlock
from tests.waiting import PATIENCE_SECONDS, until

pytestmark = pytest.mark.usefixtures("subprocesses")


class Ranker(nn.Module):
    """ids [B] -> score [B]."""

    def __init__(self):
        super().__init__()
        self.table, self.top = nn.Embedding(20, 4), nn.Linear(4, 1)

    def forward(self, ids):
        return self.top(self.table(ids)).squeeze(1)


@pytest.fixture(scope="module")
def whole(tmp_path_factory) -> Path:
    torch.manual_seed(0)
    directory = tmp_path_factory.mktemp("cutting") / "whole"
    export_model(Ranker(), {"ids": torch.zeros(4, dtype=torch.int64)}, directory)
    return directory


def policy(module: str) -> SplitPolicy:
    return SplitPolicy.model_validate({"parts": [{"name": "table", "modules": [module]}], "default": "top"})


def test_pieces_lie_in_the_directory_with_the_whole_as_their_parent(whole, tmp_path):
    words = []
    report = cut_in_process(whole, policy("table"), tmp_path / "parts", words.append)
    assert [segment.name for segment in report.segments] == ["table", "top"]
    assert report.bit_equal == {"1": True, "2": True, "64": True, "257": True}
    parent = SnapshotManifest.model_validate_json((whole / SNAPSHOT_FILE).read_bytes()).digest
    for name in ("table", "top"):
        manifest = SnapshotManifest.model_validate_json((tmp_path / "parts" / name / SNAPSHOT_FILE).read_bytes())
        assert manifest.parent == parent
    assert words, "it says that it is alive"


def test_a_policy_that_does_not_fit_is_refused_in_the_words_of_the_command(whole, tmp_path):
    with pytest.raises(CutRefused, match="'tabel'") as error:
        cut_in_process(whole, policy("tabel"), tmp_path / "parts", lambda _: None)
    assert error.value.reason is Reason.SPLIT_REFUSED
    assert not (tmp_path / "parts").exists()


def test_a_difference_is_refused_and_named(whole, tmp_path, monkeypatch):
    def differs(command, files, beat, *, environment):
        files.answer.write_text(json.dumps({"differences": ["batch 1: output 'output' differs in 1 of 1 values"]}))
        files.errors.write_text("error: the split differs from the snapshot; nothing was written")
        return 1

    monkeypatch.setattr(tool_process, "run_forked", differs)
    with pytest.raises(CutRefused, match="output 'output' differs in 1 of 1 values") as error:
        cut_in_process(whole, policy("table"), tmp_path / "parts", lambda _: None)
    assert error.value.reason is Reason.SPLIT_DIFFERS


def cutters():
    """Descendants of this process that cut."""
    found = psutil.Process().children(recursive=True)
    return [child for child in found if "-m activities.optimization.split_process" in command_line(child)]


def test_a_process_that_is_killed_is_no_refusal(whole, tmp_path):
    def kill(_):
        for child in cutters():
            child.send_signal(signal.SIGKILL)

    with pytest.raises(ToolEnded, match="SIGKILL"):
        cut_in_process(whole, policy("table"), tmp_path / "parts", kill)


def test_a_cut_that_takes_too_much_memory_ends_and_is_no_refusal(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(tool_process, "LEAST_MEMORY_BYTES", 1 << 28)
    with pytest.raises(ToolEnded):
        cut_in_process(whole, policy("table"), tmp_path / "parts", lambda _: None)
    assert not (tmp_path / "parts").exists()


def test_nothing_runs_on_after_a_cancellation(whole, tmp_path):
    seen = []

    def cancelled(_):
        until(cutters, why=lambda: "the process has not begun its program yet")
        seen.extend(stopped(cutters()))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        cut_in_process(whole, policy("table"), tmp_path / "parts", cancelled)
    assert seen
    until(lambda: gone(seen), why=lambda: f"they run on: {seen}")


PROBE = """
import json, os, socket, subprocess, sys
from pathlib import Path
from types import SimpleNamespace
from activities.optimization import split_process

def tried(act):
    try:
        act()
    except OSError as error:
        return type(error).__name__
    return "done"

def probe():
    snapshot, draft = Path(sys.argv[2]), Path(sys.argv[sys.argv.index("--out") + 1])
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    print(json.dumps({
        "reads the snapshot": tried((snapshot / "snapshot.json").read_bytes),
        "writes its directory": tried(lambda: draft.with_name("scratch").write_bytes(b"")),
        "writes the snapshot": tried(lambda: (snapshot / "weights").write_bytes(b"")),
        "writes beside its directory": tried(lambda: (draft.parents[1] / "made").write_bytes(b"")),
        "reads a key": tried(Path(SECRET).read_bytes),
        "reads its worker's environment": tried(lambda: Path(f"/proc/{os.getppid()}/environ").read_bytes()),
        "starts a program": tried(lambda: subprocess.run(["/bin/true"])),
        "opens a socket": tried(lambda: socket.socket(socket.AF_UNIX)),
        "no_new_privs": status["NoNewPrivs"].strip(),
        "seccomp": status["Seccomp"].strip(),
        "threads": len(list(Path("/proc/self/task").iterdir())),
        "environment": Path("/proc/self/environ").read_text(),
    }))

split_process.import_module = lambda name: SimpleNamespace(main=probe)
split_process.main(sys.argv[1:])
"""
"""What the process may do when `ipnext split` begins: the command line is that of the worker."""


@pytest.fixture
def probed(whole, tmp_path, monkeypatch):
    """Run PROBE as the process of a cut, and return its answers."""
    (tmp_path / "secret").write_text("private key")
    for name in ("IPNEXT_DATABASE_URL", "AWS_SECRET_ACCESS_KEY", "TEMPORAL_API_KEY", "PGPASSWORD"):
        monkeypatch.setenv(name, "of-the-worker")
    found = {}

    def probe(command, files, beat, *, environment):
        words = [sys.executable, "-c", PROBE.replace("SECRET", repr(str(tmp_path / "secret"))), *command[3:]]
        ran = subprocess.run(
            words, env=environment, capture_output=True, text=True, check=False, timeout=PATIENCE_SECONDS
        )
        assert ran.returncode == 0, ran.stderr
        files.errors.touch()
        found.update(json.loads(ran.stdout))
        return -signal.SIGKILL

    monkeypatch.setattr(tool_process, "run_forked", probe)
    with pytest.raises(ToolEnded):
        cut_in_process(whole, policy("table"), tmp_path / "parts", lambda _: None, confinement=Confinement.REQUIRED)
    return found


@needs_landlock
def test_the_process_reads_the_snapshot_writes_one_directory_and_no_more(probed):
    refused = "PermissionError"
    assert {name: value for name, value in probed.items() if name != "environment"} == {
        "reads the snapshot": "done",
        "writes its directory": "done",
        "writes the snapshot": refused,
        "writes beside its directory": refused,
        "reads a key": refused,
        "reads its worker's environment": refused,
        "starts a program": refused,
        "opens a socket": refused,
        "no_new_privs": "1",
        "seccomp": "2",
        "threads": 1,
    }


@needs_landlock
def test_the_process_has_no_credential_of_its_worker(probed):
    assert "of-the-worker" not in probed["environment"]
    assert "OMP_NUM_THREADS=1" in probed["environment"]


@needs_landlock
def test_a_required_confinement_cuts_as_before(whole, tmp_path):
    report = cut_in_process(
        whole, policy("table"), tmp_path / "parts", lambda _: None, confinement=Confinement.REQUIRED
    )
    assert report.is_equal


@pytest.fixture
def written_by(monkeypatch):
    """Stand for a process that a snapshot took over: `write` gets its output directory and its standard output."""

    def stand_for(write):
        def taken_over(command, files, beat, *, environment):
            draft = Path(command[command.index("--out") + 1])
            draft.mkdir()
            write(draft, files.answer)
            return 0

        monkeypatch.setattr(tool_process, "run_forked", taken_over)

    return stand_for


def test_links_that_the_process_left_are_not_followed(whole, tmp_path, written_by):
    written_by(lambda draft, _: (draft / "table").symlink_to(whole))
    with pytest.raises(ToolEnded, match="'table', which is neither a file nor a directory"):
        cut_in_process(whole, policy("table"), tmp_path / "parts", lambda _: None)


def test_a_report_without_end_is_not_read(whole, tmp_path, written_by, monkeypatch):
    monkeypatch.setattr(tool_process, "LARGEST_OUTPUT_BYTES", 100)
    written_by(lambda draft, _: (draft / cutting.REPORT_FILE).write_bytes(b" " * 101))
    with pytest.raises(ToolEnded, match="more than 100 bytes"):
        cut_in_process(whole, policy("table"), tmp_path / "parts", lambda _: None)
