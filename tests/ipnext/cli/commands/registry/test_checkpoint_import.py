"""`ipnext import-checkpoint`: a directory in, a snapshot out; bad input ends with status 2 and one line."""

import json

from typer.testing import CliRunner

from ipnext.cli.app import app
from tests.genai.support.checkpoints import write_llama


def invoke(*arguments):
    return CliRunner().invoke(app, ["import-checkpoint", *map(str, arguments)])


def test_a_checkpoint_is_imported_and_its_facts_are_shown(tmp_path):
    directory = write_llama(tmp_path / "hf")
    (directory / "README.md").touch()
    done = invoke(directory, tmp_path / "out", "-o", "json")
    assert done.exit_code == 0, done.output
    answer = json.loads(done.stdout)
    assert answer["manifest"]["checkpoint"]["architecture"] == "LlamaForCausalLM"
    assert answer["left_out"] == ["README.md"]
    assert (tmp_path / "out" / "snapshot.json").exists()
    shown = invoke(directory, tmp_path / "linked", "--link")
    assert "LlamaForCausalLM" in shown.stdout


def test_what_is_no_checkpoint_is_refused(tmp_path):
    refused = invoke(tmp_path, tmp_path / "out")
    assert refused.exit_code == 2
    assert f"error: {tmp_path}: config.json: missing" in refused.output
