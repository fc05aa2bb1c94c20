"""`ipnext logs` through a real API, over log files of two regions."""

import json
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from ipnext.cli import app
from ipnext.cli.commands import logs
from ipnext.errors import RegionUnreachable
from ipnext.infra.host.logs import read_logs

RUNNING = {"ranker.dense.cpu.0", "ranker.sparse.cpu.0"}


class Shelf:
    """Log files of regions, as an infrastructure keeps them."""

    def __init__(self, root: Path) -> None:
        self.root = root
        self.silent: set[str] = set()

    def write(self, region, name, text):
        (self.root / region).mkdir(exist_ok=True)
        with (self.root / region / name).open("a") as file:
            file.write(text)

    def logs(self, region, query):
        if region in self.silent:
            raise RegionUnreachable(f"{region} is silent")
        return read_logs(self.root / region, query, region=region, running=RUNNING)


@pytest.fixture
def shelf(live, tmp_path, monkeypatch):
    live.rooms.seed("ranker", "other")
    kept = Shelf(tmp_path)
    kept.write("eu", "ranker.dense.cpu.0.log", "one\ntwo\n")
    kept.write("eu", "ranker.dense.cpu.1.log", "gone\n")
    os.utime(tmp_path / "eu" / "ranker.dense.cpu.1.log", (0, 0))
    kept.write("us", "ranker.sparse.cpu.0.log", "sparse\n")
    monkeypatch.setattr(live.rooms.infrastructure, "logs", kept.logs, raising=False)
    monkeypatch.setenv("IPNEXT_API_URL", live.url)
    return kept


def run(*arguments, status=0):
    result = CliRunner().invoke(app, ["logs", *arguments])
    assert result.exit_code == status, result.output
    return result


def test_each_log_has_a_line_above_it_that_says_whose_it_is(shelf):
    told = run("ranker").stdout
    assert "==> eu ranker.dense.cpu.0 <==\none\ntwo\n" in told
    assert "==> eu ranker.dense.cpu.1, replica ended <==\ngone\n" in told
    assert "==> us ranker.sparse.cpu.0 <==\nsparse\n" in told


def test_part_region_replica_and_tail_narrow_it(shelf):
    assert run("ranker", "dense", "--replica", "0", "--tail", "1").stdout == "==> eu ranker.dense.cpu.0 <==\ntwo\n"
    assert run("ranker", "--region", "us").stdout == "==> us ranker.sparse.cpu.0 <==\nsparse\n"


def test_as_json_it_has_text_and_place(shelf):
    (log,) = json.loads(run("ranker", "sparse", "-o", "json").stdout)["logs"]
    assert (log["region"], log["replica"], log["text"], log["ended"]) == (
        "us",
        "ranker.sparse.cpu.0",
        "sparse\n",
        False,
    )


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["rankr"], "model 'rankr'"),
        (["ranker", "denze"], "model 'ranker' has no part 'denze'; it has: dense, sparse"),
        (["ranker", "--region", "mars"], "no region 'mars'; known: eu, us"),
        (
            ["ranker", "sparse", "--replica", "7"],
            "no replica 7 of part 'sparse' of 'ranker' in eu, us has a log; there are: ranker.dense.cpu.1 in eu",
        ),
        (["other"], "no replica of 'other' in eu, us has a log; there are: none yet"),
        (["ranker", "--follow", "-o", "json"], "--follow: goes on without end"),
    ],
)
def test_what_is_not_there_is_an_error_that_names_what_is(shelf, arguments, told):
    if arguments[0] == "ranker" and "7" in arguments:
        (shelf.root / "eu" / "ranker.dense.cpu.0.log").unlink()
    assert told in run(*arguments, status=2).stderr


def test_a_region_that_does_not_answer_is_left_out_and_said(shelf):
    shelf.silent.add("us")
    result = run("ranker")
    assert "region us does not answer" in result.stderr
    assert "ranker.dense.cpu.0" in result.stdout
    shelf.silent.add("eu")
    assert "the logs of eu, us can't be read" in run("ranker", status=1).stderr


def test_an_adapters_logs_are_those_of_its_base(shelf, live):
    with live.rooms.store.begin() as unit:
        manifest = unit.model("other").manifest
        llm, style = (
            manifest.spec.parts[0].model_copy(update={"name": name, "engine": "vllm", **more})
            for name, more in (("llm", {}), ("style", {"adapter_of": "llm", "hardware": ()}))
        )
        spec = manifest.spec.model_copy(update={"parts": (llm, style), "graph": None})
        unit.put_model(manifest.model_copy(update={"spec": spec}), expected_version=None)
    shelf.write("eu", "other.llm.cpu.0.engine-12345678.log", "adapter loaded\n")
    assert "engine 12345678, replica ended <==\nadapter loaded\n" in run("other", "style").stdout


def test_following_tells_what_comes_once_and_ends_at_ctrl_c(shelf, monkeypatch):
    later = iter(["three\n", "four", ""])

    def wait(_seconds):
        more = next(later, None)
        if more is None:
            raise KeyboardInterrupt
        shelf.write("eu", "ranker.dense.cpu.0.log", more)
        shelf.write("us", "ranker.sparse.cpu.1.log", "")

    monkeypatch.setattr(logs.time, "sleep", wait)
    told = run("ranker", "dense", "--follow", "--tail", "1").stdout
    assert told.endswith("==> eu ranker.dense.cpu.0 <==\ntwo\nthree\nfour\n")
    assert told.count("three") == told.count("four") == 1


def test_an_infrastructure_that_keeps_no_logs_says_so(live, monkeypatch):
    live.rooms.seed("ranker")
    monkeypatch.setenv("IPNEXT_API_URL", live.url)
    assert "this infrastructure keeps no logs that IPnext can read" in run("ranker", status=2).stderr
