"""The story of the generative demo on a platform that only seems to be there.

What it asks for, and what it makes of the answers.
"""

import io
import json
import threading
from contextlib import contextmanager, nullcontext
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace

import pytest
from rich.console import Console

from demo import telling
from demo.genai.gemma import voice_of
from demo.genai.report import GenaiReport
from demo.genai.story import CHAT, MANIFESTS, SENTENCES, GenaiStory, gateway_of
from demo.genai.streams import Talkers
from demo.genai.weights import Checkpoints
from demo.story import StoryFailed
from ipnext.model.lifecycle.changes.change import ChangeState
from ipnext.model.manifest.parser import parse_manifests

SAID = {1: " Salt comes with the rivers.", 2: " Ahoy, matey! Salt be salt."}


class Platform:
    """Client and Envoy in one: each publish of the chat model is a generation, and the newest answers."""

    def __init__(self):
        self.calls = []
        self.generation = self.published = 0
        self.finish = "stop"
        self.end = ChangeState.DONE

    def apply(self, text):
        self.calls += [f"apply {manifest.name}" for manifest in parse_manifests(text)]

    def publish(self, model, parts):
        self.calls.append(f"publish {model} {', '.join(f'{part}={path}' for part, path in parts.items())}")
        if model == CHAT:
            self.published += 1
            self.generation = self.published
        return SimpleNamespace(id="change")

    def rollback(self, model, *, generation):
        self.calls.append(f"rollback {model} {generation}")
        self.generation = generation
        return SimpleNamespace(id="change")

    def wait_change(self, change, **_):
        return SimpleNamespace(id=change, state=self.end, reason="Because", message="it was refused")

    def wait_ready(self, model, **_):
        self.calls.append(f"ready {model}")

    def model(self, name):
        return name

    @contextmanager
    def envoy(self):
        platform = self

        class Handler(BaseHTTPRequestHandler):
            def log_message(self, *_):
                pass

            def do_POST(self):
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                answer = platform.embeddings(body) if self.path == "/v1/embeddings" else platform.chat()
                generation = platform.generation
                self.send_response(200)
                self.send_header("x-ipnext-generation", str(generation))
                self.send_header("x-ipnext-snapshots", f"llm={generation}")
                self.send_header("content-length", str(len(answer)))
                self.end_headers()
                self.wfile.write(answer)

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        server.daemon_threads = True
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()
            server.server_close()

    def chat(self):
        delta = {"id": "1", "choices": [{"delta": {"content": SAID[self.generation]}, "finish_reason": self.finish}]}
        return f"data: {json.dumps(delta)}\n\ndata: [DONE]\n\n".encode()

    def embeddings(self, body):
        vectors = [[1.0, 0.0], [0.9, 0.1], [0.0, 1.0]]
        data = [{"index": i, "embedding": vectors[i]} for i in reversed(range(len(body["input"])))]
        return json.dumps({"data": data}).encode()


@pytest.fixture
def platform(monkeypatch, listeners):
    monkeypatch.setattr(telling, "watching", lambda *_: nullcontext())
    monkeypatch.setattr(telling, "status_table", lambda view: f"replicas of {view}")
    # the talkers are told of in their own tests; here a chat follows a change at once
    monkeypatch.setattr(Talkers, "__enter__", lambda self: self)
    monkeypatch.setattr(Talkers, "__exit__", lambda *_: None)
    return Platform()


def tell(platform):
    console = Console(record=True, width=120, file=io.StringIO())
    found = Checkpoints(Path("/plain"), Path("/pirate"), Path("/encoder"))
    with platform.envoy() as gateway:
        report = GenaiStory(console, platform, gateway, found, talk_seconds=0).tell()
    return report, console.export_text()


def test_the_story_publishes_twice_rolls_back_and_embeds(platform):
    report, shown = tell(platform)
    assert platform.calls == [
        *("apply chat", "publish chat llm=/plain", "ready chat"),
        *("publish chat llm=/pirate", "ready chat", "rollback chat 1"),
        *("apply sentences", "publish sentences encoder=/encoder", "ready sentences"),
    ]
    assert report.texts == {"first": SAID[1], "second": SAID[2], "rolled back": SAID[1]}
    assert report.alike > 0.9
    assert report.unlike == 0
    assert f"generation 2:{SAID[2]}" in shown
    assert f"generation 1:{SAID[1]}" in shown


def test_a_chat_that_breaks_off_ends_the_story(platform):
    platform.finish = "abort"
    with pytest.raises(StoryFailed, match=r"broke off.*abort"):
        tell(platform)


def test_a_change_that_is_refused_ends_the_story_with_its_reason(platform):
    platform.end = ChangeState.REFUSED
    with pytest.raises(StoryFailed, match=r"of chat ended .*Because it was refused"):
        tell(platform)


def test_a_run_is_sound_only_where_nothing_broke_and_both_generations_were_heard(platform):
    report, _ = tell(platform)
    assert not report.sound  # nobody talked
    heard = report.model_copy(update={"streams": 9, "streams_by_generation": {"1": 5, "2": 4}})
    assert heard.sound
    texts = {**report.texts, "rolled back": SAID[2]}
    for fault in ({"broken": 1}, {"mixed": 1}, {"texts": texts}, {"unlike": report.alike}):
        assert not heard.model_copy(update=fault).sound, fault


def test_a_report_is_written_whole(platform, tmp_path):
    report, _ = tell(platform)
    report.write(tmp_path / "report.json")
    assert GenaiReport.model_validate_json((tmp_path / "report.json").read_text()) == report
    assert [path.name for path in tmp_path.iterdir()] == ["report.json"]


def test_the_manifests_are_a_chat_and_an_encoder_on_one_thread_each():
    chat, sentences = (parse_manifests(MANIFESTS[name].read_text())[0] for name in (CHAT, SENTENCES))
    assert (chat.name, chat.spec.task, sentences.name, sentences.spec.task) == (
        CHAT,
        "generation",
        SENTENCES,
        "embedding",
    )
    assert sentences.spec.parts[0].settings["runner"] == "pooling"
    for manifest in (chat, sentences):
        (part,) = manifest.spec.parts
        assert (part.engine, part.settings["environment"]) == ("vllm", {"OMP_NUM_THREADS": "1"})
        assert [item.region for item in manifest.spec.demand] == ["us-east"]


@pytest.mark.parametrize(
    ("text", "voice"), [(" Ahoy, matey!", "pirate"), (" The sea is salty.", "plain"), ("", "plain")]
)
def test_a_voice_is_known_by_its_first_word(text, voice):
    assert voice_of(text) == voice


def test_the_gateway_is_that_of_the_region_of_the_demand():
    assert gateway_of({"gateways": {"eu-west": "http://b", "us-east": "http://a"}}) == "http://a"
