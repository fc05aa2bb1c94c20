import json
import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from typer.main import get_command
from typer.testing import CliRunner

from planner import kernel_cache
from planner.cli import plan_commands as plans
from planner.cli.app import app
from planner.kernels import Preparation
from planner.solve import solve

EXAMPLES = Path(__file__).parents[3] / "examples" / "problems"


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


@pytest.mark.parametrize(
    ("method", "complete", "told"), [("fleet", False, True), ("fleet", True, False), ("reference", False, False)]
)
def test_solve_says_so_if_kernels_are_compiled_first(files, monkeypatch, method, complete, told):
    monkeypatch.setattr(kernel_cache, "is_complete", lambda: complete)
    monkeypatch.setattr(plans, "solve", lambda stated, **_: solve(stated, method="reference"))
    result = run("solve", files / "problem.json", "-o", files / "plan.json", "--method", method)
    assert (plans.NOT_COMPILED in result.stderr) == told


def test_the_time_of_solve_is_without_that_of_the_kernels(files, monkeypatch):
    monkeypatch.setattr(plans, "preparation", lambda: Preparation(wall_seconds=90.0, compiled=True))
    clock = iter((0.0, 95.0))
    monkeypatch.setattr(plans, "time", SimpleNamespace(perf_counter=lambda: next(clock)))
    result = run("solve", files / "problem.json", "-o", files / "plan.json")
    assert re.search(r"time +5\.0 s", result.stderr)
    assert "compiled for this machine in 90.0 s" in result.stderr


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


def test_what_it_costs_is_said_beside_the_document(states):
    files = ("--problem", states / "problem.json", states / "1.json", states / "2.json")
    assert "admission: surge" in run("transition", *files).stderr


def test_a_dip_that_the_owner_allows_is_planned_checked_and_said(states, problem, model):
    stated = problem(model("m", {"a": 150.0}), supply={"a/h": 2.0})
    (states / "problem.json").write_text(stated.model_dump_json(by_alias=True))
    problem_file, path = states / "problem.json", states / "transition.json"
    allowed = ("--when-short", "dip", "--max-dip", "0.4")
    files = ("--problem", problem_file, states / "1.json", states / "2.json", "-o", path)
    planned = run("transition", *files, *allowed)
    assert (planned.exit_code, "admission: dip" in planned.stderr) == (0, True)
    assert [dip["fraction"] for dip in json.loads(path.read_text())["dips"]] == pytest.approx([1 / 3])
    assert run("check-transition", "--problem", problem_file, path, *allowed).exit_code == 0
    assert run("check-transition", "--problem", problem_file, path).exit_code == 1
    assert "--max-dip" in one_line(run("transition", *files, "--max-dip", "2"), 2)


@pytest.mark.parametrize("given", [("--when-short", "dip"), ("--max-dip", "0.4")])
def test_a_dip_without_its_bound_and_a_bound_without_a_dip_are_bad_input(states, given):
    files = ("--problem", states / "problem.json", states / "1.json", states / "2.json")
    assert "--max-dip: goes with --when-short dip" in one_line(run("transition", *files, *given), 2)


def test_a_policy_out_of_range_exits_2(states):
    files = ("--problem", states / "problem.json", states / "1.json", states / "2.json")
    assert "--max-step" in one_line(run("transition", *files, "--max-step", "0"), 2)


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.json")), ids=lambda path: path.stem)
def test_the_examples_are_problems_with_valid_plans(path, tmp_path):
    plan = tmp_path / "plan.json"
    assert run("solve", path, "-o", plan).exit_code == 0
    assert run("check", path, plan).exit_code == 0


def test_solve_to_json_prints_the_plan_and_writes_no_file(files, monkeypatch):
    monkeypatch.chdir(files)
    result = run("solve", files / "problem.json", "-o", "json")
    assert json.loads(result.stdout)["status"] == "optimal"
    assert not (files / "json").exists()


@pytest.fixture
def crowded(files, problem, model):
    """A problem.json whose one region cannot hold both models, and its plan.json."""
    stated = problem(model("high", {"a": 200.0}, priority=2.0), model("low", {"a": 300.0}), supply={"a/h": 3.0})
    (files / "problem.json").write_text(stated.model_dump_json(by_alias=True))
    solved(files)
    return files


def asked(files, *arguments):
    return run(*arguments[:1], files / "problem.json", *arguments[1:])


def test_generate_writes_the_same_problem_for_the_same_seed(files):
    figures = ("--models", "3", "--regions", "3", "--hardware", "2", "--use", "0.9", "--seed", "7")
    first = run("generate", *figures, "-o", files / "drawn.json")
    assert (first.exit_code, first.stdout) == (0, "")
    assert "models" in first.stderr
    again = run("generate", *figures, "-o", "json")
    assert again.stdout == (files / "drawn.json").read_text()
    assert len(json.loads(again.stdout)["models"]) == 3
    with_current = json.loads(run("generate", *figures, "--current", "--noise", "0.1").stdout)
    assert with_current["current"]["replicas"]
    assert run("solve", files / "drawn.json").exit_code == 0


def test_a_large_document_is_written_on_one_line_and_means_the_same(files, monkeypatch):
    small, large = files / "small.json", files / "large.json"
    drawn = ["generate", "--models", "3", "--regions", "2"]
    assert run(*drawn, "-o", small).exit_code == 0
    monkeypatch.setattr("planner.cli.output.READABLE_BYTES", 100)
    assert run(*drawn, "-o", large).exit_code == 0
    assert large.read_text().count("\n") == 1 < small.read_text().count("\n")
    assert json.loads(large.read_text()) == json.loads(small.read_text())


def test_generate_out_of_range_exits_2(files):
    assert "models" in one_line(run("generate", "--models", "0"), 2)


def test_show_draws_and_lists_every_cell(crowded):
    shown = asked(crowded, "show", crowded / "plan.json")
    assert shown.exit_code == 0
    assert "████████ 100%" in shown.stdout
    assert "3 / 0" in shown.stdout
    assert "200 QPS unmet" in shown.stdout
    (use,) = json.loads(asked(crowded, "show", crowded / "plan.json", "-o", "json").stdout)
    assert (use["used"], use["free"], use["surge"]) == (3.0, 0.0, 0.0)


def test_show_writes_a_picture(crowded):
    assert asked(crowded, "show", crowded / "plan.json", "--svg", crowded / "plan.svg").exit_code == 0
    assert (crowded / "plan.svg").read_text().startswith("<svg")
    assert "--svg" in one_line(asked(crowded, "show", crowded / "plan.json", "--svg", crowded), 2)


def test_show_adds_the_surge_of_a_transition(states):
    path = states / "transition.json"
    run("transition", "--problem", states / "problem.json", states / "1.json", states / "2.json", "-o", path)
    shown = asked(states, "show", solved(states), "--transition", path, "-o", "json")
    assert json.loads(shown.stdout)[0]["surge"] == 2.0


def test_explain_says_why_and_what_it_would_take(crowded):
    told = asked(crowded, "explain", crowded / "plan.json", "--model", "low")
    assert told.exit_code == 0
    for words in ("one less breaks", "kept here by", "without it", "price of one more", "leave no room", "needed"):
        assert words in told.stdout
    document = json.loads(asked(crowded, "explain", crowded / "plan.json", "-o", "json").stdout)
    assert [model["model"] for model in document["models"]] == ["high", "low"]
    assert document["models"][1]["needs"] == [{"rule": "supply a/h", "limit": 1.0, "needed": 3.0}]


def test_explain_leaves_prices_out_where_nobody_wants_them(crowded):
    told = asked(crowded, "explain", crowded / "plan.json", "--no-prices")
    assert told.exit_code == 0
    assert "price of one more" not in told.stdout


def test_explain_of_a_model_or_a_plan_that_does_not_belong_exits_2(crowded, files):
    assert "--model" in one_line(asked(crowded, "explain", crowded / "plan.json", "--model", "ghost"), 2)
    document = json.loads((crowded / "plan.json").read_text())
    document["replicas"][0]["model"] = "ghost"
    (crowded / "other.json").write_text(json.dumps(document))
    assert "PLAN" in one_line(asked(crowded, "explain", crowded / "other.json"), 2)
    assert "PLAN" in one_line(asked(crowded, "show", crowded / "other.json"), 2)


def test_a_conflict_exits_3_with_its_limits_named(crowded):
    result = asked(crowded, "conflict")
    assert "supply a/h, supply b/h" in one_line(result, 3)
    assert "yes" in result.stdout
    document = json.loads(asked(crowded, "conflict", "-o", "json").stdout)
    assert [member["name"] for member in document["members"]] == ["supply a/h", "supply b/h"]


def test_where_there_is_no_conflict_the_command_exits_0(crowded):
    alone = asked(crowded, "conflict", "--model", "high")
    assert (alone.exit_code, alone.stdout) == (0, "all of this demand can be served\n")
    assert json.loads(asked(crowded, "conflict", "--model", "high", "-o", "json").stdout) is None


def test_a_conflict_beside_a_plan(crowded):
    assert asked(crowded, "conflict", "--model", "low").exit_code == 0
    assert "supply a/h" in one_line(asked(crowded, "conflict", "--model", "low", "--plan", crowded / "plan.json"), 3)


def test_what_if_shows_before_and_after(crowded):
    told = asked(crowded, "what-if", "--plan", crowded / "plan.json", "--supply", "a/h=+2", "--demand", "high=*0.5")
    assert told.exit_code == 0
    assert "what if: supply a/h=+2; demand high=*0.5" in told.stdout
    assert "unmet demand that changes (1)" in told.stdout
    document = json.loads(
        asked(crowded, "what-if", "--supply", "a/h=+2", "--limit", "max_moves=9", "-o", "json").stdout
    )
    assert document["before"]["unmet_qps"] == pytest.approx(200.0)
    assert document["after"]["unmet_qps"] == 0.0
    assert document["diff"]["moves"] == 2
    assert document["changes"][0] == {"kind": "supply", "target": "a/h", "operation": "add", "figure": 2.0}


def test_what_if_writes_the_plan_after(crowded):
    after = crowded / "after.json"
    assert asked(crowded, "what-if", "--budget", "model/low=none", "--after", after).exit_code == 0
    assert asked(crowded, "check", after).exit_code == 0


@pytest.mark.parametrize(
    "options",
    [
        (),
        ("--supply", "a/h"),
        ("--drain", "moon"),
        ("--objective", "beauty=1"),
        ("--budget", "o=1"),
        ("--demand", "x=2"),
    ],
)
def test_a_change_that_cannot_be_exits_2_and_names_its_option(crowded, options):
    assert (options or ("what-if",))[0] in one_line(asked(crowded, "what-if", *options), 2)


def test_every_command_and_option_is_in_the_reference():
    group = get_command(app)
    text = (Path(__file__).parents[3] / "docs" / "reference" / "cli.md").read_text(encoding="utf-8")
    sections = dict(part.split("\n", 1) for part in re.split(r"^#+ ", text, flags=re.MULTILINE)[1:])
    named = {heading.removeprefix("ipnext plan ") for heading in sections if heading.startswith("ipnext plan ")}
    assert named == set(group.commands)
    for name, command in group.commands.items():
        options = {option for parameter in command.params for option in parameter.opts if option.startswith("--")}
        options |= {option for parameter in command.params for option in parameter.secondary_opts}
        written = set(re.findall(r"(?<![\w-])--[a-z][a-z-]+", sections[f"ipnext plan {name}"]))
        assert written == options - {"--help"}, name
