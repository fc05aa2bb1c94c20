"""Checks that run programs: which parts are compared, with which files, and what becomes of the answers."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from activities.validation.check_process import CheckFiles, CheckTooLong, CheckUnfit, examine_in_process
from activities.validation.program_checks import (
    check_golden,
    check_replay,
    golden_inputs,
    replay_inputs,
    runs_programs,
)
from ipnext.model.lifecycle.checks import CheckOutcome
from ipnext.model.lifecycle.status import Reason
from ipnext.model.registry.checking import GOLDEN_FILE, GoldenReport, RegressionReport
from ipnext.model.registry.optimization import REPLAY_FILE, Measured, ReplayReport
from serving.confinement.landlock import Confinement
from tests.serving.confinement.test_landlock import needs_landlock
from tests.serving.optimizing.models import draw_replay, export, inputs, load

REPLAY = {"validation": {"replay": {"maxAucDrop": 0.01}}}


class Examined:
    """Answers in place of the process, and notes the jobs."""

    def __init__(self, answer):
        self.answer = answer
        self.jobs = []

    def __call__(self, job, _, kind, beat):
        beat("running")
        self.jobs.append(job)
        for name in ("replay", "golden"):
            assert name not in job or Path(job[name]).is_file()
        assert all(Path(place).is_dir() for place in (*job["after"], *job.get("before", ())))
        if isinstance(self.answer, Exception):
            raise self.answer
        assert isinstance(self.answer, kind)
        return self.answer


def regression(*broken):
    return RegressionReport(
        replay=ReplayReport(rows=9, source="replay"), auc=Measured(before=0.7, after=0.6), max_error=1, broken=broken
    )


def golden(*shown):
    return GoldenReport(requests=2, values=4, mismatches=len(shown), shown=shown)


@pytest.fixture
def bearing(house, kit):
    """Make a source of a part with one more file."""

    def make(part, value, file):
        return house.source(getattr(kit, part.upper()), kit.weights(value), more={file: b"{}"})

    return make


@pytest.fixture
def renewed(candidate, house, kit, bearing):
    """A candidate with a new snapshot of dense, which brings a replay set; sparse is the one that serves."""

    def build(answer, spec=REPLAY, **parts):
        serving = {"sparse": house.source(kit.SPARSE, kit.weights(1)), "dense": house.source(kit.DENSE, kit.weights(2))}
        found = candidate(serving=serving, spec=spec, **({"dense": bearing("dense", 3, REPLAY_FILE)} | parts))
        return replace(found, examine=Examined(answer))

    return build


def outcomes(results):
    return [(each.subject, each.outcome.value, each.reason) for each in results]


def test_the_part_with_a_replay_set_is_compared_with_the_serving_snapshot(renewed):
    given = renewed(regression())
    (result,) = check_replay(given)
    (job,) = given.examine.jobs
    assert [Path(place).name for place in (*job["after"], *job["before"])] == [
        given.snapshots["dense"].digest,
        given.serving["dense"].digest,
    ]
    assert job["replay"] == str(Path(job["after"][0]) / REPLAY_FILE)
    assert (result.subject, result.outcome) == ("dense", CheckOutcome.PASSED)
    assert result.evidence["auc"] == {"before": 0.7, "after": 0.6}
    assert result.evidence["limits"]["maxAucDrop"] == 0.01


def test_a_broken_limit_refuses_with_its_line(renewed):
    (result,) = check_replay(renewed(regression("maxAucDrop: 0.1 is above 0.01 (0.6 after 0.7)")))
    assert (result.outcome, result.reason) == (CheckOutcome.REFUSED, Reason.METRICS_REGRESSED)
    assert result.message == "snapshot 1 against 1, which serves: maxAucDrop: 0.1 is above 0.01 (0.6 after 0.7)"


@pytest.mark.parametrize(
    ("error", "reason"),
    [(CheckUnfit("replay: no rows"), Reason.SCHEMA_MISMATCH), (CheckTooLong("900 s"), Reason.DEADLINE_EXCEEDED)],
)
def test_what_does_not_fit_or_takes_too_long_refuses(renewed, error, reason):
    assert outcomes(check_replay(renewed(error))) == [("dense", "refused", reason)]


def test_without_a_replay_set_the_limits_can_not_be_judged(renewed, house, kit):
    given = renewed(regression(), dense=house.source(kit.DENSE, kit.weights(3)))
    assert outcomes(check_replay(given)) == [
        ("dense", "refused", Reason.METRICS_REGRESSED),
        ("sparse", "skipped", Reason.SUCCEEDED),
    ]
    assert not given.examine.jobs


def test_a_named_part_is_the_only_one(renewed):
    named = {"validation": {"replay": {"part": "sparse", "maxAucDrop": 1}}}
    assert outcomes(check_replay(renewed(regression(), spec=named))) == [("sparse", "skipped", Reason.SUCCEEDED)]
    unknown = {"validation": {"replay": {"part": "other", "maxAucDrop": 1}}}
    assert outcomes(check_replay(renewed(regression(), spec=unknown))) == [
        ("other", "refused", Reason.METRICS_REGRESSED)
    ]


def test_nothing_is_compared_without_limits_or_a_serving_generation(renewed, candidate, bearing):
    assert outcomes(check_replay(renewed(regression(), spec={}))) == [("ranker", "skipped", Reason.SUCCEEDED)]
    first = candidate(spec=REPLAY, dense=bearing("dense", 3, REPLAY_FILE))
    assert outcomes(check_replay(first)) == [("ranker", "skipped", Reason.SUCCEEDED)]
    assert (replay_inputs(first), runs_programs(first)) == (None, False)


def test_inputs_change_with_limits_and_with_both_snapshots(renewed, bearing, house, kit):
    given = renewed(regression())
    other = {"validation": {"replay": {"maxAucDrop": 0.02}}}
    changed = [
        renewed(regression(), spec=other),
        renewed(regression(), dense=bearing("dense", 4, REPLAY_FILE)),
        replace(given, serving={**given.serving, "dense": given.snapshots["dense"]}),
    ]
    assert replay_inputs(given) == replay_inputs(renewed(regression()))
    assert all(replay_inputs(each) != replay_inputs(given) for each in changed)
    assert runs_programs(given)


def test_times_are_measured_each_time(renewed):
    given = renewed(regression(), spec={"validation": {"replay": {"maxAucDrop": 1, "maxLatencyRatio": 1.2}}})
    assert (replay_inputs(given), runs_programs(given)) == (None, True)


def test_golden_requests_that_hold_pass_and_a_mismatch_refuses(candidate, bearing):
    bearer = candidate(dense=bearing("dense", 3, GOLDEN_FILE))
    (held,) = check_golden(replace(bearer, examine=Examined(golden())))
    assert (held.subject, held.outcome, held.evidence["requests"]) == ("dense", CheckOutcome.PASSED, 2)
    line = "request 'a', output 'y'[0]: expected 1, got 2"
    (refused,) = check_golden(replace(bearer, examine=Examined(golden(line, line))))
    assert (refused.reason, refused.message) == (Reason.GOLDEN_MISMATCH, f"{line}; 2 mismatches in all")
    assert golden_inputs(bearer)["parts"].keys() == {"dense", "sparse"}


def test_without_golden_requests_no_process_starts(candidate):
    given = candidate()
    assert outcomes(check_golden(given)) == [("ranker", "skipped", Reason.SUCCEEDED)]
    assert (golden_inputs(given), runs_programs(given)) == (None, False)


@needs_landlock
@pytest.mark.usefixtures("subprocesses")
def test_a_confined_process_runs_both_checks_on_real_snapshots(tmp_path):
    export(tmp_path / "snapshots" / "old")
    replay = draw_replay(load(tmp_path / "snapshots" / "old"), 100)
    new = tmp_path / "snapshots" / "new"
    export(new, replay=replay, golden={"one": inputs(2)})

    def run(name, job, kind):
        (tmp_path / name).mkdir()
        files = CheckFiles([tmp_path / "snapshots"], tmp_path / name)
        return examine_in_process(
            {"after": [str(new)], **job}, files, kind, lambda _: None, confinement=Confinement.REQUIRED
        )

    figures = {"before": [str(tmp_path / "snapshots" / "old")], "limits": {"maxAucDrop": 0}}
    compared = run("replay", {**figures, "replay": str(new / REPLAY_FILE)}, RegressionReport)
    assert (compared.replay.rows, compared.broken) == (100, ())
    assert run("golden", {"golden": str(new / GOLDEN_FILE)}, GoldenReport).mismatches == 0
    odd = json.loads((new / GOLDEN_FILE).read_text())
    odd["requests"][0]["inputs"].pop()
    (tmp_path / "snapshots" / "odd.json").write_text(json.dumps(odd))
    with pytest.raises(CheckUnfit, match="request 'one'"):
        run("odd", {"golden": str(tmp_path / "snapshots" / "odd.json")}, GoldenReport)
