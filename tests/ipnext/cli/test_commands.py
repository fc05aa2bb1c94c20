"""The command line against a real server: answers, forms, errors, exit statuses."""

import http.server
import json
import threading
import xml.etree.ElementTree as ET
from importlib.metadata import EntryPoint

import pytest
import yaml
from typer.testing import CliRunner

from ipnext.cli import app
from ipnext.client import Client
from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.model.lifecycle.checks import CheckOutcome, CheckResult, ValidationReport
from ipnext.model.lifecycle.regions.drain import DrainState
from ipnext.model.lifecycle.replans.moves import MoveTrouble, ReplanProgress
from ipnext.model.lifecycle.replans.replan import ReplanState
from ipnext.model.lifecycle.status import ConditionType, Reason
from tests.waiting import until


@pytest.fixture
def applied(run, live):
    fleet, model = live.rooms.directory / "fleet.yaml", live.rooms.directory / "model.yaml"
    fleet.write_text(yaml.safe_dump(live.rooms.fleet_document()))
    model.write_text(yaml.safe_dump(live.rooms.model_document()))
    run("apply", "-f", fleet)
    run("apply", "-f", model)
    return run


@pytest.fixture
def parts(live):
    given = []
    for part in ("sparse", "dense"):
        live.rooms.write_snapshot(live.rooms.directory / part, part.encode())
        given += ["--part", f"{part}={live.rooms.directory / part}"]
    return given


@pytest.fixture
def serving(applied, live, parts):
    applied("publish", "ranker", *parts)
    live.rooms.serve(1)
    live.rooms.adopt_plan()
    with live.rooms.store.begin() as unit:
        unit.add_replan("r0", "schedule")
    live.rooms.finish_replan("r0")
    return applied


def test_every_given_file_is_applied(run, live):
    fleet, model = live.rooms.directory / "fleet.yaml", live.rooms.directory / "model.yaml"
    fleet.write_text(yaml.safe_dump(live.rooms.fleet_document()))
    model.write_text(yaml.safe_dump(live.rooms.model_document()))
    applied = json.loads(run("apply", "-f", model, "-f", fleet, "-o", "json").stdout)
    assert len(applied) == 2, "both files, the fleet first"


def test_json_is_pure_and_messages_go_to_stderr(applied, parts):
    result = applied("publish", "ranker", *parts, "-o", "json")
    assert json.loads(result.stdout)["generation"] == 1
    assert "uploading" in result.stderr


@pytest.mark.parametrize("what", ["models", "plans", "replans", "regions", "fleet"])
def test_every_listing_has_three_forms(serving, what):
    assert serving("get", what).stdout
    plain = json.loads(serving("get", what, "-o", "json").stdout)
    assert plain
    assert type(yaml.safe_load(serving("get", what, "-o", "yaml").stdout)) is type(plain)


def test_a_list_is_cut_at_its_limit_and_says_so(applied, live):
    live.rooms.seed("a-one", "a-two")
    cut = applied("get", "models", "--limit", "2", "-o", "json")
    assert [view["manifest"]["metadata"]["name"] for view in json.loads(cut.stdout)] == ["a-one", "a-two"]
    assert cut.stderr.strip() == "there are more than 2: --all lists them all, --limit so many"
    whole = applied("get", "models", "--limit", "2", "--all", "-o", "json")
    assert (len(json.loads(whole.stdout)), whole.stderr) == (3, "")


def test_models_are_listed_by_owner_readiness_and_text(serving, live):
    live.rooms.seed("a-one")
    assert "ranker" not in serving("get", "models", "--not-ready").stdout
    assert "a-one" in serving("get", "models", "--not-ready").stdout
    assert "a-one" not in serving("get", "models", "--search", "rank").stdout
    assert serving("get", "models", "--owner", "nobody", "-o", "json").stdout.strip() == "[]"
    refused = serving("get", "plans", "--not-ready", status=2)
    assert "are for models" in refused.stderr


def test_changes_of_all_models_are_listed(serving):
    assert "ranker" in serving("get", "changes").stdout


def test_the_table_of_models_tells_what_matters(serving):
    table = serving("get", "models").stdout
    head, line = table.splitlines()[:2]
    assert head.split() == [
        "model", "ready", "serving", "up-to-date", "reason", "generation", "target", "replicas", "regions", "age",
    ]  # fmt: skip
    assert line.split()[:9] == ["ranker", "True", "True", "True", "Serving", "1", "1", "4/4", "eu"]


def test_describe_events_and_explain_show_one_model(serving):
    text = serving("describe", "ranker").stdout
    for word in ("conditions", "traffic", "replicas", "generations", "changes", "100.0%", "ranker.dense.cpu.0"):
        assert word in text
    assert json.loads(serving("describe", "ranker", "-o", "json").stdout)["generations"][0]["number"] == 1
    assert "generation 1 serves" in serving("events", "ranker").stdout
    assert "ranker is ready: Serving" in serving("explain", "ranker").stdout


def test_a_report_is_described_and_a_refusal_overridden(applied, live, parts):
    change = json.loads(applied("publish", "ranker", *parts, "-o", "json").stdout)["id"]
    size = CheckResult(
        check="finite-weights", subject="dense", outcome="refused", evidence={"bytes": 7}, duration_seconds=0.25
    )
    with live.rooms.store.begin("ranker") as unit:
        unit.save_report(ValidationReport(model="ranker", generation=1, checks=(size,)))
        unit.update_change(change, state=ChangeState.REFUSED, reason=Reason.NON_FINITE_WEIGHTS, message="NaN")

    shown = applied("describe", "report", "ranker", "1").stdout
    for word in ("refused by finite-weights", "0.250", "built-in", '{"bytes": 7}'):
        assert word in shown
    assert json.loads(applied("describe", "report", "ranker", "1", "-o", "json").stdout)["checks"][0]["cached"] is False
    assert "no number of a generation" in applied("describe", "report", "ranker", "x", status=2).stderr

    told = applied("override", change, "--check", "finite-weights", "--reason", "known good").stdout
    assert "passes the check finite-weights; by" in told
    assert "it is carried out again as" in told
    assert "safety-critical" in applied("override", change, "--check", "digests", "--reason", "x", status=2).stderr


def test_describe_shows_and_draws_the_parts_of_a_model_that_is_cut(applied, live, parts):
    applied("publish", "ranker", *parts)
    live.rooms.lay_out(1)
    live.rooms.serve(1)
    text = applied("describe", "ranker").stdout
    for line in (
        "parts of generation 1",
        "tower  2,048  cpu(1 units, 100 requests/s)  tower-s0 tower-s1  bottom top",
        "tower-s1  1      4         512",
        "    tower-s1  <- request, tower-s0",
        "answer: score from tower-s1",
        "equal in every bit at batch 1, 64",
        "(in 1 parts)",
    ):
        assert line in text, text
    found = json.loads(applied("describe", "ranker", "-o", "json").stdout)
    assert [part["name"] for part in found["layout"]["parts"]] == ["tower"]
    picture = live.rooms.directory / "graph.svg"
    applied("describe", "ranker", "--picture", picture)
    words = {element.text for element in ET.parse(picture).iter() if element.text}
    assert {"tower-s0", "tower-s1", "1,536 bytes", "ids"} <= words


def test_describe_has_a_line_for_each_stage_of_the_wanted_generation(serving, live):
    refused = CheckResult(
        check="stage.audit",
        subject="ranker",
        outcome=CheckOutcome.REFUSED,
        reason=Reason.STAGE_REFUSED,
        message="the gap is too wide",
        evidence={"gap": 0.3},
        duration_seconds=2.25,
    )
    with live.rooms.store.begin("ranker") as unit:
        unit.save_report(ValidationReport(model="ranker", generation=1, checks=(refused,)))
        unit.update_model("ranker", target_generation=1)
    text = serving("describe", "ranker").stdout
    assert "stages of generation 1" in text
    line = " ".join(next(line for line in text.splitlines() if "audit" in line).split())
    assert line.startswith("audit StageRefused 2.2 s")
    (stage,) = json.loads(serving("describe", "ranker", "-o", "json").stdout)["stages"]
    assert (stage["check"], stage["evidence"]) == ("stage.audit", {"gap": 0.3})


def test_describe_shows_what_a_generation_was_derived_to(applied, live, parts):
    applied("publish", "ranker", *parts)
    live.rooms.derive(1, "sparse")
    assert "sparse=1 (derived: 2)" in applied("describe", "ranker").stdout


def test_a_model_that_is_not_cut_has_no_picture(serving, live):
    picture = live.rooms.directory / "graph.svg"
    result = serving("describe", "ranker", "--picture", picture, status=2)
    assert "--picture: 'ranker' serves no generation that is cut" in result.stderr
    assert not picture.exists()
    assert "parts of generation" not in serving("describe", "ranker").stdout


def test_explain_names_the_cause_of_a_refusal(serving, live):
    live.rooms.publish_directly("ranker", "b")
    live.rooms.refuse(2, Reason.NON_FINITE_WEIGHTS, "dense: weight 3 is NaN")
    text = serving("explain", "ranker").stdout
    assert "NonFiniteWeights: dense: weight 3 is NaN" in text
    assert "healthy training step" in text


def test_a_dry_run_shows_fields_and_writes_nothing(applied, live):
    file = live.rooms.directory / "changed.yaml"
    file.write_text(yaml.safe_dump(live.rooms.model_document(qps=33)))
    assert "spec.demand.0.qps" in applied("apply", "-f", file, "--dry-run").stdout
    assert "unchanged" in applied("apply", "-f", "-", input=yaml.safe_dump(live.rooms.model_document())).stdout


def test_applying_a_retired_model_says_that_it_is_back_and_what_to_do(applied, live):
    with live.rooms.store.begin() as unit:
        unit.update_model("ranker", retired=True)
    document = yaml.safe_dump(live.rooms.model_document())
    tried = applied("apply", "-f", "-", "--dry-run", input=document)
    assert "would be brought back from retirement" in tried.stdout
    assert "publish" not in tried.stderr

    back = applied("apply", "-f", "-", input=document)

    assert "brought back from retirement" in back.stdout
    assert (
        "ranker was retired: nothing serves until you publish it (`ipnext publish ranker --part NAME=DIR`)"
        in back.stderr
    )
    assert "unchanged" in applied("apply", "-f", "-", input=document).stdout


def test_an_error_is_one_line_and_its_exit_status(applied, live):
    bad = live.rooms.directory / "bad.yaml"
    document = live.rooms.model_document()
    document["spec"]["colour"] = "red"
    bad.write_text(yaml.safe_dump(document))
    result = applied("apply", "-f", bad, status=2)
    assert result.stdout == ""
    assert result.stderr.startswith("error: spec.colour: unknown field; allowed here:")
    assert result.stderr.count("\n") == 1
    for arguments in (
        ("apply", "-f", "/nothing/there"),
        ("describe", "nope"),
        ("get", "cheese"),
        ("get",),
        ("no-such-command",),
        ("publish", "ranker", "--part", "head=/tmp"),
        ("publish", "ranker", "--part", "/tmp"),
        ("publish", "ranker"),
        ("wait", "ranker", "--for", "tea"),
        ("rollback", "ranker"),
    ):
        result = applied(*arguments, status=2)
        assert result.stderr.startswith("error: "), arguments
        assert result.stderr.count("\n") == 1


def test_an_unreachable_api_is_named(monkeypatch):
    monkeypatch.setenv("IPNEXT_API_URL", "http://127.0.0.1:1")
    result = CliRunner().invoke(app, ["get", "models"])
    assert result.exit_code == 1
    assert "no API answers at http://127.0.0.1:1" in result.stderr
    assert "ipnext dev" in result.stderr


def test_a_bad_setting_is_named():
    result = CliRunner().invoke(app, ["--api", "nonsense", "get", "models"])
    assert (result.exit_code, result.stderr.startswith("error: api_url")) == (2, True)


def _end_when_queued(live, end):
    """Play the workflow: end the newest change once the API has handed it on."""

    def play():
        until(lambda: live.rooms.lifecycle.submitted)
        end()

    thread = threading.Thread(target=play)
    thread.start()
    return thread


def test_publish_with_wait_ends_with_the_change(applied, live, parts):
    thread = _end_when_queued(live, lambda: live.rooms.serve(1))
    result = applied("publish", "ranker", *parts, "--wait", "--timeout", "180")
    thread.join()
    assert "publish of ranker (generation 1): done" in result.stderr
    assert "done" in result.stdout


def test_a_refused_publish_with_wait_is_exit_1_with_the_reason(applied, live, parts):
    thread = _end_when_queued(live, lambda: live.rooms.refuse(1, Reason.SCHEMA_MISMATCH, "edge x"))
    result = applied("publish", "ranker", *parts, "--wait", "--timeout", "180", "-o", "json", status=1)
    thread.join()
    assert json.loads(result.stdout)["state"] == ChangeState.REFUSED.value
    assert "error: publish of ranker (generation 1): refused, SchemaMismatch: edge x" in result.stderr


def test_wait_for_ready_a_change_and_too_long(serving, live):
    with live.rooms.store.read() as unit:
        change_id = unit.changes("ranker")[0].id
    assert "ready" in serving("wait", "ranker").stdout
    assert "done" in serving("wait", "ranker", "--for", f"change={change_id}").stdout
    wrong = serving("wait", "another", "--for", f"change={change_id}", status=2)
    assert "is one of model 'ranker'; allowed: a change of 'another'" in " ".join(wrong.stderr.split())
    live.rooms.infrastructure.cut("eu")
    result = serving("wait", "ranker", "--timeout", "0.1", status=1)
    assert "RegionUnreachable" in result.stderr


def test_wait_takes_any_condition_with_its_status_and_the_form_of_kubectl(serving, live):
    for what in ("Serving", "serving", "Serving=True", "condition=Serving", "condition=ready=true", "Progressing"):
        assert json.loads(serving("wait", "ranker", "--for", what, "-o", "json").stdout)["status"]["model"] == "ranker"
    with live.rooms.store.begin() as unit:
        unit.set_condition("ranker", ConditionType.UP_TO_DATE, "False", Reason.GATE_FAILED, "too many errors")
    assert "UpToDate=False" in serving("wait", "ranker", "--for", "UpToDate=False").stdout
    assert "Ready=False" in serving("wait", "ranker", "--for", "condition=Ready=False").stdout
    assert "Serving=True" in serving("wait", "ranker", "--for", "Serving").stdout
    late = serving("wait", "ranker", "--for", "UpToDate", "--timeout", "0.1", status=1)
    assert "has not UpToDate=True" in late.stderr
    assert "UpToDate: GateFailed too many errors" in late.stderr
    for wrong in ("Tea", "Serving=maybe", "condition=", "condition", "change=", "Serving="):
        refused = serving("wait", "ranker", "--for", wrong, status=2)
        assert "allowed: ready, SnapshotsResolved, " in refused.stderr
    live.rooms.infrastructure.cut("eu")
    assert "Serving=Unknown" in serving("wait", "ranker", "--for", "Serving=Unknown").stdout


def test_parts_of_the_same_content_are_given_together(applied, live, parts):
    directory = live.rooms.directory / "sparse"
    told = applied("publish", "ranker", "--part", f"sparse,dense={directory}", "-o", "json")
    assert json.loads(told.stdout)["generation"] == 1
    with live.rooms.store.read() as unit:
        found = {snapshot.part: snapshot.digest for snapshot in unit.snapshots("ranker")}
    assert found["sparse"] == found["dense"]
    for wrong, why in (("sparse,head", "is not NAME=DIR"), ("sparse,sparse", "'sparse' is given twice")):
        assert why in applied("publish", "ranker", "--part", f"{wrong}={directory}", status=2).output


def test_a_model_of_one_part_takes_a_bare_directory(applied, live):
    document = live.rooms.model_document("simple")
    document["spec"] = {k: v for k, v in document["spec"].items() if k != "graph"}
    document["spec"]["parts"] = document["spec"]["parts"][:1]
    applied("apply", "-f", "-", input=yaml.safe_dump(document))
    live.rooms.write_snapshot(live.rooms.directory / "a=b", b"w")
    assert "publish" in applied("publish", "simple", "--part", live.rooms.directory / "a=b").stdout


def test_rollback_and_delete(serving, live):
    live.rooms.publish_directly("ranker", "b")
    live.rooms.serve(2)
    assert json.loads(serving("rollback", "ranker", "-o", "json").stdout)["generation"] == 1
    assert json.loads(serving("rollback", "ranker", "--to", "1", "-o", "json").stdout)["generation"] == 1
    assert json.loads(serving("repair", "ranker", "-o", "json").stdout)["kind"] == "repair"
    assert "retire" in serving("delete", "ranker").stdout


def _end_replan(live, **told):
    """Play the workflow: end the next replan once it is recorded."""

    def recorded():
        with live.rooms.store.read() as unit:
            return [replan.id for replan in unit.replans()]

    known = recorded()

    def play():
        until(lambda: recorded() != known)
        live.rooms.finish_replan(recorded()[0], **told)

    thread = threading.Thread(target=play)
    thread.start()
    return thread


def test_a_replan_is_asked_for_and_followed(serving, live):
    asked = serving("replan")
    assert "is recorded; follow it with `ipnext get replans`" in asked.stderr
    thread = _end_replan(live, moves=3, models=("ranker",), message="saves 3 $/h")
    result = serving("replan", "--wait", "--timeout", "180")
    thread.join()
    line = result.stdout.splitlines()[1].split()
    assert (line[1:6], line[-3:]) == (["manual", "adopted", "plan-1", "3", "ranker"], ["saves", "3", "$/h"])


def test_a_dry_run_is_waited_for_and_shows_what_would_change(serving, live):
    thread = _end_replan(live, state=ReplanState.DRY_RUN, message="dry run: saves 3 $/h")
    result = serving("replan", "--dry-run", "--max-moves", "2", "--timeout", "180")
    thread.join()
    assert "dry run: saves 3 $/h" in result.stdout
    assert "4 replicas started; 0 -> 4 $/h" in result.stdout
    with live.rooms.store.read() as unit:
        assert (unit.replans()[0].dry_run, unit.replans()[0].max_moves) == (True, 2)


def test_a_replan_that_fails_is_exit_1_with_the_reason(serving, live):
    thread = _end_replan(live, state=ReplanState.FAILED, reason=Reason.PLANNER_FAILED, message="it was killed")
    result = serving("replan", "--wait", "--timeout", "180", status=1)
    thread.join()
    assert result.stderr.splitlines()[-1] == "error: the replan failed: PlannerFailed: it was killed"


def test_plans_are_listed_with_the_replans_that_found_none_and_described_one_by_one(serving, live):
    live.rooms.fail_replan("the planner was killed; the plan in force stays")
    lines = serving("get", "plans").stdout.splitlines()
    heads = "plan in force of outcome $/h gap unmet/s moves solve s trigger age message"
    assert lines[0].split() == heads.split()
    assert "PlannerFailed: the planner was killed" in lines[1]
    assert lines[2].split()[:10] == ["plan-1", "*", "the", "fleet", "adopted", "4", "5.00%", "12.5", "4", "1.5"]
    text = serving("describe", "plan", "plan-1").stdout
    for word in ("adopted, in force, of the fleet", "the bound covers", "9.5", "1.50", "2.50", "1 MiB", "0" * 64):
        assert word in text
    assert "4 replicas started; 0 -> 4 $/h" in text
    failed = serving("describe", "plan", "replan-failed").stdout
    assert "PlannerFailed: the planner was killed" in failed
    assert json.loads(serving("describe", "plan", "plan-1", "-o", "json").stdout)["diff"]["moves"] == 4
    assert serving("describe", "plan", "nope", status=2).stderr.startswith("error: plan 'nope'")
    assert (
        "allowed: MODEL, change CHANGE, snapshot MODEL PART N, source MODEL NAME, plan PLAN, replan REPLAN"
        in serving("describe", "a", "b", status=2).stderr
    )


@pytest.fixture
def gateway(live):
    """A gateway that answers V2 as the router does."""

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_POST(self):
            request = json.loads(self.rfile.read(int(self.headers["content-length"])))
            wrong = self.headers.get("x-ipnext-generation") == "9"
            body = (
                {"error": "generation 9 is not served; served: 1"}
                if wrong
                else {
                    "model_name": "ranker",
                    "model_version": "1",
                    "outputs": [
                        {"name": "score", "datatype": "FP32", "shape": [1], "data": [request["inputs"][0]["data"][0]]}
                    ],
                }
            )
            self.send_response(404 if wrong else 200)
            self.send_header("x-ipnext-generation", "1")
            self.send_header("x-ipnext-snapshots", "dense=1,sparse=1")
            self.send_header("x-ipnext-region", "eu")
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    observe = live.rooms.infrastructure.observe
    url = f"http://127.0.0.1:{server.server_address[1]}"
    live.rooms.infrastructure.observe = lambda *asked: observe(*asked).model_copy(update={"gateway_url": url})
    yield url
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_region_is_drained_listed_and_asked_back(serving, live):
    drained = serving("drain", "eu", "--reason", "new racks")
    assert "region eu is recorded" in drained.stderr
    assert "recorded" in serving("get", "drains").stdout
    assert "new racks" in serving("get", "regions").stdout
    assert json.loads(serving("undrain", "eu", "-o", "json").stdout)["state"] == "returning"
    assert "is not drained" in serving("undrain", "us", status=2).stderr


def test_a_drain_that_is_refused_ends_with_its_reason(serving, live, monkeypatch):
    looked = Client.drain_status
    found = []

    def refused_after_a_look(client, region):
        found.append(looked(client, region))
        if len(found) == 1:
            refuse()
        return found[-1]

    def refuse():
        with live.rooms.store.begin() as unit:
            message = "ranker: 10 requests/s of eu (latency)"
            unit.update_drain("drain-eu-1", state=DrainState.REFUSED, cause=Reason.NO_CAPACITY, message=message)

    serving("drain", "eu")
    monkeypatch.setattr(Client, "drain_status", refused_after_a_look)
    told = serving("drain", "eu", "--wait", "--timeout", "180", status=1).stderr
    assert found[0].state is not DrainState.REFUSED
    assert "is refused: NoCapacity: ranker: 10 requests/s of eu (latency)" in told


def test_a_replan_is_paused_and_described(serving, live):
    progress = ReplanProgress(
        total=4,
        moved=2,
        moving=1,
        moving_models=("ranker",),
        failed=1,
        troubles=(MoveTrouble(model="other", message="no room"),),
    )
    with live.rooms.store.begin() as unit:
        unit.add_replan("r9", "manual")
        unit.claim_replans("p9", run_id="run")
        unit.note_progress("p9", progress)
    assert "2/4, 1 failed" in serving("get", "replans").stdout
    described = serving("describe", "replan", "r9").stdout
    assert "2 of 4 (75 %)" in described
    assert "no room" in described
    assert "moves go on" in serving("replan", "status").stdout
    assert "release night" in serving("replan", "pause", "--reason", "release night").stdout
    assert "release night; `ipnext replan resume` ends it" in serving("replan", "status").stdout
    serving("replan", "resume")
    assert "moves go on" in serving("replan", "status").stdout


def test_a_pause_without_a_replan_is_told_as_such_and_not_as_progress(serving):
    paused = serving("replan", "pause", "--reason", "release night").stdout
    assert "release night; `ipnext replan resume` ends it" in paused
    assert "0 of 0" not in paused
    assert "moves go on" in serving("replan", "resume").stdout


def test_predict_shows_the_answer_and_the_proof(serving, gateway, tmp_path):
    request = tmp_path / "request.json"
    request.write_text(json.dumps({"inputs": [{"name": "x", "shape": [1], "datatype": "FP32", "data": [0.5]}]}))
    text = serving("predict", "ranker", "--region", "eu", "-f", request).stdout
    assert "generation 1 (dense=1,sparse=1) in eu" in text
    assert "[0.5]" in text
    plain = json.loads(serving("predict", "ranker", "-f", request, "-o", "json").stdout)
    assert (plain["generation"], plain["answer"]["outputs"][0]["data"]) == ("1", [0.5])
    pinned = serving("predict", "ranker", "-f", request, "--generation", "9", status=2)
    assert "generation 9 is not served" in pinned.stderr
    assert "known: eu, us" in serving("predict", "ranker", "-f", request, "--region", "mars", status=2).stderr
    request.write_text("{")
    assert "no JSON request" in serving("predict", "ranker", "-f", request, status=2).stderr


def test_predict_without_a_gateway_says_so(serving, live, tmp_path):
    request = tmp_path / "request.json"
    request.write_text("{}")
    live.rooms.infrastructure.cut("eu")
    result = serving("predict", "ranker", "--region", "eu", "-f", request, status=1)
    assert "region 'eu' answers" in result.stderr


def test_the_help_lists_every_command_and_survives_broken_plugins(monkeypatch):
    broken = EntryPoint(name="broken", value="module_that_is_not_there:app", group="ipnext.commands")
    late = EntryPoint(name="late", value="json:nothing_of_that_name", group="ipnext.commands")
    shadow = EntryPoint(name="get", value="module_that_is_not_there:app", group="ipnext.commands")
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: (broken, late, shadow))
    help_text = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"})
    assert help_text.exit_code == 0
    for word in ("apply", "predict", "broken", "Unavailable", "module_that_is_not_there", "ipnext[platform]"):
        assert word in help_text.stdout
    called = CliRunner().invoke(app, ["broken", "--some", "argument"])
    assert called.exit_code == 1
    assert called.stderr.startswith("error: the command 'broken' is unavailable (no module named")
    assert "nothing_of_that_name" in CliRunner().invoke(app, ["late"]).stderr
    assert CliRunner().invoke(app, ["get", "--help"]).exit_code == 0


def test_a_plugin_that_works_is_a_command(monkeypatch, tmp_path):
    (tmp_path / "plugged_in.py").write_text(
        "import typer\napp = typer.Typer()\n@app.command()\ndef hello(name: str) -> None:\n    print('hello', name)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    point = EntryPoint(name="greet", value="plugged_in:app", group="ipnext.commands")
    monkeypatch.setattr("importlib.metadata.entry_points", lambda **_: (point,))
    assert "From plugged_in" in CliRunner().invoke(app, ["--help"]).stdout
    assert CliRunner().invoke(app, ["greet", "you"]).stdout == "hello you\n"
    assert CliRunner().invoke(app, ["greet"]).exit_code == 2
    assert "completion" not in CliRunner().invoke(app, ["greet", "--help"]).stdout


def test_the_help_tells_what_plugins_of_our_own_do_and_imports_none():
    told = CliRunner().invoke(app, ["--help"], env={"COLUMNS": "200"}).stdout
    assert "Cut a snapshot into parts by a policy." in told
    assert "From " not in told


def test_version_prints_the_version():
    result = CliRunner().invoke(app, ["version"])
    assert (result.exit_code, result.stdout.count(".")) == (0, 2)


def test_without_a_command_the_help_is_shown():
    result = CliRunner().invoke(app, [])
    assert (result.exit_code, "Usage" in result.stdout) == (0, True)


def test_a_snapshot_is_signed_and_the_signature_goes_up_with_it(applied, live, parts):
    directory = live.rooms.directory / "sparse"
    key = live.rooms.directory / "ci.pem"
    assert "keep it secret" in applied("keygen", key).output
    trust_key(applied, live, live.rooms.directory / "ci.pub.pem")
    assert "is signed by" in applied("sign", directory, "--key", key).output
    applied("publish", "ranker", *parts)
    with live.rooms.store.read() as unit:
        snapshot = unit.snapshot("ranker", "sparse", 1)
    assert live.rooms.artifacts.signature(snapshot.uri) == (directory / "snapshot.json.sig").read_bytes()


def trust_key(applied, live, public):
    document = live.rooms.model_document()
    document["spec"]["validation"] = {"signers": {"publicKeys": [public.read_text()]}}
    manifest = live.rooms.directory / "model.yaml"
    manifest.write_text(yaml.safe_dump(document))
    applied("apply", "-f", manifest)


def test_signing_a_damaged_directory_or_with_no_key_is_refused(run, live):
    directory = live.rooms.directory / "part"
    live.rooms.write_snapshot(directory, b"part")
    key = live.rooms.directory / "none.pem"
    assert "error: --key" in run("sign", directory, "--key", key, status=2).output
    run("keygen", key)
    assert "never written over" in run("keygen", key, status=2).output
    manifest = json.loads((directory / "snapshot.json").read_text())
    (directory / manifest["files"][0]["path"]).write_bytes(b"bad")
    run("sign", directory, "--key", key, status=2)
    assert not (directory / "snapshot.json.sig").exists()


def test_a_signature_of_another_snapshot_is_refused_before_anything_is_published(applied, live, parts):
    key = live.rooms.directory / "ci.pem"
    applied("keygen", key)
    applied("sign", live.rooms.directory / "sparse", "--key", key)
    (live.rooms.directory / "sparse" / "snapshot.json.sig").rename(live.rooms.directory / "dense" / "snapshot.json.sig")
    assert "belongs to another snapshot" in applied("publish", "ranker", *parts, status=2).output
