"""Wrong words on the command line: one line that names the option, the value and what is allowed, and status 2."""

import subprocess
import sys

import pytest
from typer.testing import CliRunner

from ipnext.cli import app


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (
            ("get", "plan"),
            (
                "'plan' is not one of 'models', 'changes', 'plans', 'replans', 'regions', 'drains', 'fleet', "
                "'freezes', 'denials', 'generations', 'holds', 'owners', 'snapshots', 'sources', 'stages', "
                "'validators'; see `ipnext get -h`"
            ),
        ),
        (("get", "models", "--output", "xml"), "'xml' is not one of 'table', 'json', 'yaml'; see `ipnext get -h`"),
        (("publish", "m"), "Missing option '--part'; see `ipnext publish -h`"),
        (
            ("apply", "--wait", "-f", "m.yaml"),
            "No such option: --wait; `ipnext wait MODEL` waits for a model; see `ipnext apply -h`",
        ),
        (("rollback", "m", "--generation", "9"), "No such option: --generation; see `ipnext rollback -h`"),
    ],
)
def test_a_wrong_word_is_told_in_one_line(words, told):
    result = CliRunner().invoke(app, words, prog_name="ipnext")
    assert result.exit_code == 2
    assert result.output.count("\n") == 1
    assert result.output.startswith("error: ")
    assert result.output.endswith(f"{told}\n")
    assert "Value error" not in result.output


@pytest.mark.usefixtures("subprocesses")
@pytest.mark.parametrize(("word", "status"), [("version", 0), ("nonsense", 2)])
def test_a_command_that_used_temporals_client_ends_without_finalizing(word, status):
    program = f"""
import atexit, sys, ipnext.temporal
from ipnext.cli import main
atexit.register(print, "finalized")
sys.argv = ["ipnext", "{word}"]
main()
"""
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    assert ended.returncode == status
    assert ended.stdout + ended.stderr
    assert "finalized" not in ended.stdout
