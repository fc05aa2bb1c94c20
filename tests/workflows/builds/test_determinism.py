"""Workflow code asks the engine for time, chance and names.

Workers run it without the sandbox that would refuse the rest. The recorded histories replay within the sandbox
(`test_replay.py`); this reads the code that no history goes through.
"""

import ast
from pathlib import Path

import pytest

from workflows import policies

ROOT = Path(policies.__file__).parent
OF_THE_PROCESS = {ROOT / "worker.py", *(ROOT / "runtime").iterdir(), *ROOT.rglob("__init__.py")}
"""Modules that run no workflow."""
MODULES = sorted(set(ROOT.rglob("*.py")) - OF_THE_PROCESS)
FORBIDDEN_MODULES = {"random", "secrets", "socket", "subprocess", "tempfile", "threading", "time", "uuid", "httpx"}
FORBIDDEN_CALLS = {"now", "utcnow", "today", "open", "input", "getenv", "urandom", "sleep", "to_thread"}
ALLOWED = {"workflow.now", "workflow.sleep"}
BUILD_ID = "os.environ.get('IPNEXT_WORKER_BUILD_ID')"
"""Read once, as the module is imported: a run that is pinned to a build never meets another one."""


def calls_of(tree):
    for node in ast.walk(tree):
        if isinstance(node, ast.Call):
            yield ast.unparse(node.func), ast.unparse(node)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_a_workflow_module_asks_only_the_engine(path):
    tree = ast.parse(path.read_text())
    imported = {
        alias.name.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.Import) for alias in node.names
    }
    imported |= {
        node.module.split(".")[0] for node in ast.walk(tree) if isinstance(node, ast.ImportFrom) and node.module
    }

    assert not imported & FORBIDDEN_MODULES
    for function, call in calls_of(tree):
        if function in ALLOWED or call == BUILD_ID:
            continue
        assert function.rsplit(".", 1)[-1] not in FORBIDDEN_CALLS, call
        assert not function.startswith("os."), call


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.stem)
def test_no_set_is_gone_through(path):
    """The order of a set of texts is another one in each process."""
    loops = (n.iter for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.For | ast.comprehension))
    for over in loops:
        assert not isinstance(over, ast.Set | ast.SetComp), ast.unparse(over)
        assert not (isinstance(over, ast.Call) and ast.unparse(over.func) in {"set", "frozenset"}), ast.unparse(over)
