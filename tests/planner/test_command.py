import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from planner.command import app

EXAMPLES = Path(__file__).parents[2] / "examples" / "problems"


@pytest.fixture
def files(tmp_path, problem, model):
    """A folder with a problem.json of one model."""
    stated = problem(model("m", {"a": 150.0}), supply={"a/h": 4.0})
    (tmp_path / "problem.json").write_text(stated.model_dump_json(by_alias=True))
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def solved(files):
    plan = files / "plan.json"
    assert run("solve", files / "problem.json", "-o", plan).exit_code == 0
    return plan


def one_line(result, status):
    assert result.exit_code == status
    (line,) = [line for line in result.stderr.splitlines() if line.startswith("error: ")]
    return line


def test_solve_writes_the_plan_and_says_what_it_found(files):
    result = run("solve", files / "problem.json", "-o", files / "plan.json")
    assert result.exit_code == 0
    assert result.stdout == ""
    assert "optimal" in result.stderr
    assert json.loads((files / "plan.json").read_text())["status"] == "optimal"
    assert [path.name for path in files.iterdir() if path.name.startswith(".")] == []


def test_solve_without_a_file_prints_nothing_but_the_plan(files):
    result = run("solve", files / "problem.json")
    assert json.loads(result.stdout)["replicas"][0]["count"] == 2


def test_the_same_problem_gives_the_same_file(files):
    first = solved(files).read_bytes()
    assert solved(files).read_bytes() == first


def test_unmet_demand_is_a_valid_plan_and_names_the_rules(files, problem, model):
    stated = problem(model("m", {"a": 900.0}), supply={"a/h": 4.0})
    (files / "problem.json").write_text(stated.model_dump_json(by_alias=True))
    result = run("solve", files / "problem.json")
    assert result.exit_code == 0
    assert json.loads(result.stdout)["unmet"][0]["rules"] == ["supply a/h"]
    assert "supply a/h" in result.stderr


def test_placing_beside_a_model_that_breaks_a_rule_exits_3(files, problem, model):
    running = [{"model": "m", "part": "p", "region": "a", "hardware": "h", "count": 3}]
    stated = problem(model("m"), model("n"), supply={"a/h": 1.0}, replicas=running)
    (files / "problem.json").write_text(stated.model_dump_json(by_alias=True))
    result = run("solve", files / "problem.json", "--place", "n")
    assert "supply a/h" in one_line(result, 3)
    assert result.stdout == ""


def test_bad_input_exits_2_with_one_line_that_names_the_field(files):
    document = json.loads((files / "problem.json").read_text())
    document["models"][0]["survive"] = "zone"
    (files / "problem.json").write_text(json.dumps(document))
    line = one_line(run("solve", files / "problem.json"), 2)
    assert "models[0].survive" in line
    assert "'region' or 'none'" in line


@pytest.mark.parametrize("name", ["missing.json", ".", "not.json"])
def test_a_file_that_cannot_be_read_exits_2(files, name):
    (files / "not.json").write_text("{")
    one_line(run("solve", files / name), 2)


def test_a_plan_that_cannot_be_written_exits_2(files):
    assert "--output" in one_line(run("solve", files / "problem.json", "-o", files), 2)
    assert "--output" in one_line(run("solve", files / "problem.json", "-o", files / "none" / "plan.json"), 2)


def test_check_accepts_a_valid_plan(files):
    result = run("check", files / "problem.json", solved(files))
    assert (result.exit_code, result.stdout) == (0, "valid: every rule holds\n")


def test_check_exits_1_and_names_each_broken_rule(files):
    plan = solved(files)
    document = json.loads(plan.read_text())
    document["replicas"][0]["count"] = 1
    plan.write_text(json.dumps(document))
    table = run("check", files / "problem.json", plan)
    listed = run("check", files / "problem.json", plan, "-o", "json")
    assert (table.exit_code, listed.exit_code) == (1, 1)
    assert {item["rule"] for item in json.loads(listed.stdout)} == {"capacity", "cost", "objective", "bound"}
    assert "capacity" in table.stdout


def test_diff_says_what_changes(files):
    plan = solved(files)
    other = files / "other.json"
    document = json.loads(plan.read_text())
    document["replicas"][0]["count"] = 3
    other.write_text(json.dumps(document))
    assert run("diff", plan, plan).stdout == "nothing changes\n"
    assert "1 started" in run("diff", plan, other).stdout
    assert json.loads(run("diff", plan, other, "-o", "json").stdout)["moves"] == 1


@pytest.fixture
def states(files, state):
    for generation in (1, 2):
        standing = state({f"m/p/a/h/{generation}": 2}, {f"m/a/a/{generation}": 1.0})
        (files / f"{generation}.json").write_text(standing.model_dump_json(by_alias=True))
    return files


def test_a_transition_is_written_and_checked(states):
    path = states / "transition.json"
    planned = run("transition", "--problem", states / "problem.json", states / "1.json", states / "2.json", "-o", path)
    assert planned.exit_code == 0
    assert [wave["gate"] for wave in json.loads(path.read_text())["waves"]] == ["canary", "step", "final"]
    checked = run("check-transition", "--problem", states / "problem.json", path)
    assert (checked.exit_code, checked.stdout) == (0, "valid: every rule holds\n")
    strict = run("check-transition", "--problem", states / "problem.json", path, "--max-step", "0.2", "-o", "json")
    assert strict.exit_code == 1
    assert {item["rule"] for item in json.loads(strict.stdout)} == {"max_step"}


def test_a_refused_transition_exits_3_and_the_document_says_why(states, problem, model):
    stated = problem(model("m", {"a": 150.0}), supply={"a/h": 2.0})
    (states / "problem.json").write_text(stated.model_dump_json(by_alias=True))
    result = run("transition", "--problem", states / "problem.json", states / "1.json", states / "2.json")
    assert "supply" in one_line(result, 3)
    assert json.loads(result.stdout)["refused"]
    beside = run(
        "transition",
        "--problem",
        states / "problem.json",
        states / "1.json",
        states / "2.json",
        "--refresh",
        "in_place",
    )
    assert beside.exit_code == 0


def test_a_policy_out_of_range_exits_2(states):
    files = ("--problem", states / "problem.json", states / "1.json", states / "2.json")
    assert "--max-step" in one_line(run("transition", *files, "--max-step", "0"), 2)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.json")), ids=lambda path: path.stem)
def test_the_examples_are_problems_with_valid_plans(path, tmp_path):
    plan = tmp_path / "plan.json"
    assert run("solve", path, "-o", plan).exit_code == 0
    assert run("check", path, plan).exit_code == 0
