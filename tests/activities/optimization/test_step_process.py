"""A step in a process of its own: what it derives, what it refuses, its limits, and that nothing of it is left."""

import signal

import psutil
import pytest
import torch
from torch import nn

from activities.optimization.step_process import StepRefused, StepSource, derive_in_process
from activities.runtime import tool_process
from activities.runtime.tool_process import ToolEnded
from ipnext.model.manifest.optimization import OptimizationStep
from ipnext.model.registry.optimization import AccuracyReport
from serving.confinement.landlock import Confinement
from serving.engines.torch.compiled import CompiledProgram
from serving.engines.torch.engine import TorchEngine
from serving.snapshots.directory import verify_manifest
from tests.processes import command_line, gone, stopped
from tests.serving.confinement.test_landlock import needs_landlock
from tests.serving.optimizing.models import export, load, step, write_replay
from tests.waiting import until

pytestmark = pytest.mark.usefixtures("subprocesses")


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("step") / "whole"
    export(directory)
    return directory


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.cell = nn.LSTM(2, 2, batch_first=True)

    def forward(self, x):
        return {"y": self.cell(x)[0]}


def processes():
    """Descendants of this process that derive."""
    found = psutil.Process().children(recursive=True)
    return [child for child in found if "-m activities.optimization.step_process" in command_line(child)]


@needs_landlock
def test_the_derived_snapshot_lies_in_the_directory_with_its_report(whole, tmp_path):
    words = []
    write_replay(tmp_path / "replay.safetensors", load(whole))
    source = StepSource(whole, tmp_path / "replay.safetensors")
    (tmp_path / "scratch").mkdir()
    report = derive_in_process(
        source, step(maxAucDrop=0.01), tmp_path / "scratch" / "out", words.append, confinement=Confinement.REQUIRED
    )
    manifest = verify_manifest(tmp_path / "scratch" / "out")
    assert manifest.parent == report.parent == verify_manifest(whole).digest
    assert (report.replay.source, report.replay.labels, report.broken) == ("replay", "replay", ())
    written = (tmp_path / "scratch" / "out" / "optimization.json").read_bytes()
    assert AccuracyReport.model_validate_json(written) == report
    assert words[0] == "quantize for 0 s"


@needs_landlock
def test_a_compilation_is_judged_by_its_library_and_may_start_no_more_than_the_compiler(tmp_path):
    export(tmp_path / "whole", nn.Linear(2, 1), {"input": torch.zeros(2, 2)})
    given = OptimizationStep.model_validate({"compile": {"maxError": 1e-6}})
    (tmp_path / "scratch").mkdir()
    out = tmp_path / "scratch" / "out"
    report = derive_in_process(
        StepSource(tmp_path / "whole"), given, out, lambda _: None, confinement=Confinement.REQUIRED
    )
    manifest = verify_manifest(out)
    assert (report.kind, report.details["level"], report.broken) == ("compile", "x86-64-v3", ())
    assert {"library.so", "program.json", "optimization.json"} <= {file.path for file in manifest.files}
    assert manifest.parent == verify_manifest(tmp_path / "whole").digest
    part = TorchEngine(trusts_libraries=True).load(out, manifest, {"compile": True})
    assert isinstance(part._program, CompiledProgram)


def test_a_program_whose_calls_hosts_check_is_not_compiled(tmp_path):
    export(tmp_path / "whole", Recurrent(), {"x": torch.zeros(2, 3, 2)})
    given = OptimizationStep.model_validate({"compile": {}})
    with pytest.raises(StepRefused) as refused:
        derive_in_process(StepSource(tmp_path / "whole"), given, tmp_path / "out", lambda _: None)
    assert "torch.ops.aten.lstm.input is checked by hosts on each call" in refused.value.message


def test_a_broken_limit_is_reported_and_nothing_is_written(whole, tmp_path):
    report = derive_in_process(StepSource(whole), step(maxError=0), tmp_path / "out", lambda _: None)
    assert [line.partition(":")[0] for line in report.broken] == ["maxError"]
    assert not (tmp_path / "out").exists()


def test_a_step_that_does_not_fit_is_refused_with_the_reason(whole, tmp_path):
    """More reasons: tests/serving/optimizing/test_process.py, without a process."""
    given = OptimizationStep.model_validate({"plugin": {"kind": "gone"}})
    with pytest.raises(StepRefused) as refused:
        derive_in_process(StepSource(whole), given, tmp_path / "out", lambda _: None)
    assert "'gone' is no kind of step here" in refused.value.message


def test_a_process_that_is_killed_is_no_refusal(whole, tmp_path):
    def kill(_):
        for child in processes():
            child.send_signal(signal.SIGKILL)

    with pytest.raises(ToolEnded, match="SIGKILL"):
        derive_in_process(StepSource(whole), step(), tmp_path / "out", kill)


def test_too_much_memory_is_no_refusal_and_ends_the_process(whole, tmp_path, monkeypatch):
    monkeypatch.setattr(tool_process, "LEAST_MEMORY_BYTES", 1 << 28)
    with pytest.raises(ToolEnded):
        derive_in_process(StepSource(whole), step(), tmp_path / "out", lambda _: None)
    assert not (tmp_path / "out").exists()


def test_a_step_that_takes_too_long_is_ended_and_refused(whole, tmp_path, monkeypatch):
    seen, run_forked = [], tool_process.run_forked

    def late(command, files, beat, *, environment):
        def tell(_):
            until(processes, why=lambda: "the process has not begun its program yet")
            seen.extend(stopped(processes()))
            beat(0.1)

        return run_forked(command, files, tell, environment=environment)

    monkeypatch.setattr(tool_process, "run_forked", late)
    with pytest.raises(StepRefused, match="it took more than 0 s"):
        derive_in_process(StepSource(whole), step(), tmp_path / "out", lambda _: None, seconds=0.0)
    assert seen
    until(lambda: gone(seen), why=lambda: f"they run on: {seen}")


def test_nothing_runs_on_after_a_cancellation(whole, tmp_path):
    seen = []

    def cancelled(_):
        until(processes, why=lambda: "the process has not begun its program yet")
        seen.extend(stopped(processes()))
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        derive_in_process(StepSource(whole), step(), tmp_path / "out", cancelled)
    assert seen
    until(lambda: gone(seen), why=lambda: f"they run on: {seen}")
