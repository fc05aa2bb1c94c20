"""Each program that is started by `python -m` prints its help instead of starting."""

import ast
import os
import subprocess
import sys
from pathlib import Path

import pytest

from ipnext.process.settings_only import read_no_arguments

ROOT = Path(__file__).parents[3]
PACKAGES = ("activities", "ipnext", "planner", "serving", "workflows")
CHILD = "started by a process of the platform, which gives it a parent, descriptors or a foreign command"
CHILDREN = {
    "activities.optimization.split_process": CHILD,
    "activities.optimization.step_process": CHILD,
    "activities.planning.solver_process": CHILD,
    "activities.runtime.tool_server_process": CHILD,
    "activities.validation.check_process": CHILD,
    "activities.validation.documents.json_process": CHILD,
    "activities.validation.chat_templates.process": CHILD,
    "ipnext.infra.process.fork_server_process": CHILD,
    "serving.compiling.worker": CHILD,
    "serving.genai.engine.process_reaper": CHILD,
}
"""Modules without a help -> why."""


def is_program(path):
    """Return whether a module does something if it is run as `__main__`."""
    if path.name == "__main__.py":
        return True
    text = path.read_text()
    if "__main__" not in text:  # each process of the tests looks at all modules as it imports this one
        return False
    tests = (node.test for node in ast.parse(text).body if isinstance(node, ast.If))
    return any(ast.unparse(test) == "__name__ == '__main__'" for test in tests)


def name_of(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__main__")


PROGRAMS = {name_of(path) for package in PACKAGES for path in (ROOT / package).rglob("*.py") if is_program(path)}


def test_the_children_are_programs():
    assert CHILDREN.keys() < PROGRAMS


@pytest.mark.usefixtures("subprocesses")
@pytest.mark.parametrize("program", sorted(PROGRAMS - CHILDREN.keys()))
def test_a_program_prints_its_help_and_starts_nothing(tmp_path, program):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", program, "--help"]
    ended = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, cwd=tmp_path)
    assert ended.returncode == 0, ended.stderr
    assert "usage: " in ended.stdout.lower()
    assert list(tmp_path.iterdir()) == []


def test_a_program_without_arguments_refuses_one(capsys):
    with pytest.raises(SystemExit) as refused:
        read_no_arguments("ipnext.api", "Serve.", ["--port", "1"])
    assert refused.value.code == 2
    assert "unrecognized arguments: --port 1" in capsys.readouterr().err
