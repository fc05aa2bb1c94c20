"""`ipnext optimize`: its table, its JSON, and its exit statuses."""

import json

import pytest
from typer.testing import CliRunner

from ipnext.errors import InvalidInput
from serving.optimizing.command import app
from tests.serving.optimizing.models import export

CONTRACT = "{quantize: {embeddings: int8, maxAucDrop: 0.05}}"


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    directory = tmp_path_factory.mktemp("command") / "whole"
    export(directory)
    return directory


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_table_shows_tables_figures_and_the_snapshot(whole, tmp_path):
    found = run(whole, "--step", CONTRACT, "--out", tmp_path / "out")
    assert found.exit_code == 0, found.output
    for text in (
        "tables.user.weight",
        "bytes of what was replaced",
        "0.281x",
        "AUC",
        "p50 of 64 rows, us",
        "snapshot: ",
    ):
        assert text in found.output
    assert (tmp_path / "out" / "snapshot.json").exists()


def test_json_has_every_step(whole):
    found = run(whole, "--step", CONTRACT, "-o", "json")
    [report] = json.loads(found.output)["steps"]
    assert (report["kind"], report["settings"]["maxAucDrop"]) == ("quantize", 0.05)


def test_a_broken_limit_is_exit_status_1_and_writes_nothing(whole, tmp_path):
    found = run(whole, "--step", "{quantize: {embeddings: int8, maxError: 0}}", "--out", tmp_path / "out")
    assert found.exit_code == 1
    assert "broken: maxError" in found.output
    assert "nothing was written" in found.output
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("{prune: {}}", "step 0: prune: unknown field; allowed here: compile, plugin, quantize"),
        ("{quantize: {embeddings: int3}}", "step 0: quantize.embeddings"),
        ("{quantize", "step 0: '{quantize' cannot be read as YAML"),
    ],
)
def test_a_step_that_is_none_is_named(whole, text, told):
    found = run(whole, "--step", text)
    assert isinstance(found.exception, InvalidInput)
    assert told in found.exception.message


ON_SMALL = "{quantize: {embeddings: int8, hardware: [small]}}"
ON_LARGE = "{quantize: {embeddings: int4, hardware: [large]}}"


def test_the_steps_of_one_hardware_kind_are_run(whole):
    found = run(whole, "--step", ON_SMALL, "--step", ON_LARGE, "--hardware", "large", "-o", "json")
    [report] = json.loads(found.output)["steps"]
    assert (report["settings"]["embeddings"], "hardware" in report["settings"]) == ("int4", False)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        ((), "--hardware: has to be given, since steps name hardware kinds; allowed: large, small"),
        (("--hardware", "tpu"), "--hardware: no step is for 'tpu'; allowed: large, small"),
    ],
)
def test_a_hardware_kind_without_steps_is_refused(whole, arguments, told):
    found = run(whole, "--step", ON_SMALL, "--step", ON_LARGE, *arguments)
    assert isinstance(found.exception, InvalidInput)
    assert told in found.exception.message
