"""`ipnext profile` against a real API and the mock engine, and what people read of profiles."""

import asyncio
import importlib.util
import json
import sys
from pathlib import Path

import pytest
from aiohttp import web
from typer.testing import CliRunner

from ipnext.cli import app
from ipnext.model.deployment.deployment import AssignedSnapshot, Deployment, DeploymentKey
from ipnext.model.fleet import FleetManifest
from ipnext.model.manifest.parser import parse_manifest
from ipnext.model.registry.registry import Signature, SnapshotManifest, SnapshotSource
from tests.waiting import PATIENCE_SECONDS

MOCK = Path(__file__).parents[4] / "genai" / "support" / "mock_engine.py"
QUICK = ("--seconds", "0", "--prompt-tokens", "16", "--output-tokens", "4", "--concurrency", "1,2")


@pytest.fixture(scope="module")
def mock_url(switchboard):
    """A mock engine of the model `chat`, in the loop of the test server."""
    spec = importlib.util.spec_from_file_location("ipnext_mock_engine_cli", MOCK)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    told = module.options(["--port", "0", "--model", "chat", "--ttft-ms", "20", "--itl-ms", "5", "--blocks", "1000"])

    async def start():
        runner = web.AppRunner(module.Engine(told).routes(), handler_cancellation=True)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        return runner

    runner = asyncio.run_coroutine_threadsafe(start(), switchboard.loop).result(PATIENCE_SECONDS)
    yield f"http://127.0.0.1:{runner.addresses[0][1]}"
    asyncio.run_coroutine_threadsafe(runner.cleanup(), switchboard.loop).result(PATIENCE_SECONDS)


def model(**part):
    option = {"kind": "cpu", "units": 1, "profile": True, "tokensPerSecond": 5}
    given = {"name": "llm", "engine": "vllm", "hardware": [option], "settings": {"maxModelLen": 64}, **part}
    header = {"apiVersion": "ipnext/v1", "kind": "Model", "metadata": {"name": "chat", "owner": "o"}}
    demand = [{"region": "eu", "tokensPerSecond": 4000}]
    return parse_manifest(header | {"spec": {"task": "generation", "parts": [given], "demand": demand}})


@pytest.fixture
def run(live, monkeypatch, mock_url):
    """Run a command; `chat` serves snapshot 1 in eu, by a replica whose engine is the mock."""
    monkeypatch.setenv("IPNEXT_API_URL", live.url)
    rooms = live.rooms
    source = SnapshotManifest(engine="vllm", signature=Signature(inputs=(), outputs=()), files=())
    with rooms.store.begin() as unit:
        unit.put_fleet(FleetManifest.model_validate(rooms.fleet_document()).spec, expected_version=None)
        unit.put_model(model(latencyTarget={"ttftMs": 1e6}), expected_version=None)
        unit.publish("chat", {"llm": SnapshotSource(manifest=source, uri="file:///nowhere")}, change_id="c1")
        unit.update_model("chat", serving_generation=1, target_generation=1)
        key = DeploymentKey(model="chat", part="llm", region="eu", hardware="cpu")
        held = AssignedSnapshot(snapshot=1, digest=source.digest, uri="file:///nowhere", generations=(1,))
        deployment = Deployment(key=key, replicas=1, engine="vllm", units=1, qps=5, holds=(held,))
        unit.put_deployment(deployment)
    rooms.infrastructure.apply(deployment)
    observe = rooms.infrastructure.observe

    def with_engines(region):
        state = observe(region)
        replicas = tuple(r.model_copy(update={"engines": dict.fromkeys(r.ready, mock_url)}) for r in state.replicas)
        return state.model_copy(update={"replicas": replicas})

    monkeypatch.setattr(rooms.infrastructure, "observe", with_engines)

    def run(*arguments, status=0):
        result = CliRunner().invoke(app, [str(a) for a in arguments])
        assert status is None or result.exit_code == status, result.output
        return result

    return run


def test_a_live_replica_is_measured_and_people_read_tokens_a_second(run):
    assert "llm   cpu       1      5 tokens/s  declared" in run("describe", "chat").stdout
    told = run("profile", "chat", *QUICK)
    assert "concurrency 2: " in told.stderr
    assert "kept with snapshot 1 of chat/llm on cpu; plans take" in told.stdout
    assert "it asked for replan profile-" in told.stdout
    text = run("describe", "chat").stdout
    assert "demand: 4,000 tokens/s in eu" in text
    assert "measured, snapshot 1" in text
    snapshot = run("describe", "snapshot", "chat", "llm", "1").stdout
    for said in (
        "chat/llm, snapshot 1: engine vllm",
        "plans take it",
        "prompts of 16 tokens, answers of 4",
        "maxModelLen=64",
    ):
        assert said in snapshot
    plain = json.loads(run("describe", "snapshot", "chat", "llm", "1", "-o", "json").stdout)
    [found] = plain["profiles"]
    given = found["profile"]["conditions"]
    assert (given["prompt_tokens"], given["region"], given["settings"]) == (16, "eu", {"maxModelLen": 64})
    assert found["found"]["tokens_per_second"] > 5


def test_a_target_that_is_not_met_at_the_lowest_load_is_an_answer_with_exit_status_1(run):
    told = run("profile", "chat", *QUICK, "--ttft-ms", "10", "-o", "json", status=1)
    answer = json.loads(told.stdout)
    assert (answer["found"]["met"], answer["target"]["ttftMs"]) == (False, 10)
    assert answer["stored"]["found"]["met"]
    text = run("profile", "chat", *QUICK, "--itl-ms", "1", "--dry-run", status=1).stdout
    assert "ITL <= 1 ms) not met at concurrency 1, the lowest measured" in text
    assert len(json.loads(run("describe", "snapshot", "chat", "llm", "1", "-o", "json").stdout)["profiles"]) == 1


def test_a_server_without_a_platform_is_measured_too(run, mock_url, monkeypatch):
    monkeypatch.setenv("IPNEXT_API_URL", "http://127.0.0.1:9")
    answer = json.loads(run("profile", "any", "--url", mock_url, "--dry-run", *QUICK, "-o", "json").stdout)
    assert (answer["found"]["met"], answer["stored"]) == (True, None)
    assert [step["concurrency"] for step in answer["profile"]["steps"]] == [1, 2]


@pytest.mark.parametrize(
    ("arguments", "status", "said"),
    [
        (("--concurrency", "4,2"), 2, "--concurrency: '4,2'; allowed: at most 64 whole numbers that rise"),
        (("--concurrency", "1,x"), 2, "--concurrency: '1,x'"),
        (("--part", "tower"), 2, "--part: 'tower'; allowed: llm"),
        (("--hardware", "gpu"), 2, "--hardware: 'gpu'; allowed: cpu"),
        (("--region", "us"), 2, "no replica of part 'llm' of 'chat' in us is ready and has an engine of its own"),
        (("--snapshot", "1"), 2, "--snapshot: 1 goes with --url"),
        (("--url", "http://127.0.0.1:9"), 1, "http://127.0.0.1:9/v1/models does not answer as an OpenAI server"),
    ],
)
def test_what_can_not_be_measured_says_why(run, arguments, status, said):
    result = run("profile", "chat", *arguments, status=None)
    assert said in result.stderr
    assert result.exit_code == status


def test_without_aiohttp_it_says_what_to_install(run, monkeypatch):
    for name in ("ipnext.profiling.engine", "ipnext.profiling.measuring"):
        monkeypatch.delitem(sys.modules, name, raising=False)
    monkeypatch.setitem(sys.modules, "aiohttp", None)
    told = run("profile", "chat", "--dry-run", status=1).stderr
    assert "`ipnext profile` needs aiohttp; install it with: pip install 'ipnext[platform]'" in told


def test_an_unknown_snapshot_is_not_described(run):
    assert "no snapshot 7 of part 'llm'" in run("describe", "snapshot", "chat", "llm", "7", status=2).stderr
    assert "'x' is no number of a snapshot" in run("describe", "snapshot", "chat", "llm", "x", status=2).stderr
