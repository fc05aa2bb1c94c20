"""The demo's record of answers must see what it claims to exclude."""

from pathlib import Path
from typing import Any

from demo.load import Answers
from demo.report import Report


def body(sparse: int, dense: int, generation: int = 1) -> dict[str, Any]:
    outputs = [{"name": "stamps", "shape": [2, 2], "datatype": "INT64", "data": [sparse, dense, sparse, dense]}]
    return {"model_version": str(generation), "outputs": outputs}


def headers(generation: int = 1, proof: str = "dense=1,sparse=1") -> dict[str, str]:
    return {"x-ipnext-generation": str(generation), "x-ipnext-snapshots": proof}


def test_an_answer_of_one_training_run_is_not_mixed() -> None:
    answers = Answers()
    answers.count_answer("us-east", headers(), body(1, 1), 0.01)
    assert (answers.requests, answers.failed, answers.mixed) == (1, 0, 0)


def test_parts_of_two_training_runs_are_mixed_whatever_the_headers_say() -> None:
    answers = Answers()
    answers.count_answer("us-east", headers(), body(1, 2), 0.01)
    assert answers.mixed == 1


def test_one_generation_that_answers_with_two_training_runs_is_mixed() -> None:
    answers = Answers()
    answers.count_answer("us-east", headers(), body(1, 1), 0.01)
    answers.count_answer("us-east", headers(), body(2, 2), 0.01)
    assert answers.mixed == 1


def test_a_proof_that_changes_within_a_generation_is_mixed() -> None:
    answers = Answers()
    answers.count_answer("us-east", headers(), body(1, 1), 0.01)
    answers.count_answer("eu-west", headers(proof="dense=2,sparse=1"), body(1, 1), 0.01)
    assert answers.mixed == 1


def test_a_body_of_another_version_than_the_header_is_mixed() -> None:
    answers = Answers()
    answers.count_answer("us-east", headers(2), body(1, 1, generation=1), 0.01)
    assert answers.mixed == 1


def test_failures_are_counted_and_their_causes_kept() -> None:
    answers = Answers()
    for _ in range(30):
        answers.count_failure("us-east: HTTP 503")
    assert (answers.requests, answers.failed, len(answers.failures)) == (30, 30, 20)


def report(**changed: Any) -> Report:
    figures: dict[str, Any] = {
        "generations": 3,
        "requests": 100,
        "failed": 0,
        "mixed": 0,
        "auc_offline": 0.72,
        "auc_served": 0.72,
        "auc_served_by_region": {"us-east": 0.72},
        "auc_offline_generation_2": 0.73,
        "auc_served_generation_2": 0.73,
        "refused_reason": "NonFiniteWeights",
        "refused_message": "",
        "rollback_seconds": 1.0,
        "replan_moves": 1,
        "replan_cost_per_hour": (4.0, 4.3),
        "publish_to_serving_seconds": 3.0,
        "first_publish_to_serving_seconds": 9.0,
        "latency_p50_seconds": 0.01,
        "latency_p99_seconds": 0.1,
        "answers_by_generation": {"1": 100},
        "total_seconds": 60.0,
    }
    return Report(**(figures | changed))


def test_a_report_is_sound_only_where_every_promise_was_kept() -> None:
    assert report().sound
    for broken in ({"failed": 1}, {"mixed": 1}, {"auc_served": 0.721}, {"refused_reason": ""}, {"requests": 0}):
        assert not report(**broken).sound


def test_a_report_is_written_whole(tmp_path: Path) -> None:
    report().write(tmp_path / "report.json")
    assert Report.model_validate_json((tmp_path / "report.json").read_text()) == report()
    assert [p.name for p in tmp_path.iterdir()] == ["report.json"]
