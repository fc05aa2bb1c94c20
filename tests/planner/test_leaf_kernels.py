"""Kernels that make no arrays call nothing that does.

numba compiles it as such a kernel, and refuses, wherever the cache has their callees.
"""

import ast
from pathlib import Path

import pytest

import planner

MAKE_ARRAYS = {
    "max",
    "min",
    "argmax",
    "argmin",
    "take",
    "copy",
    "sort",
    "argsort",
    "cumsum",
    "dot",
    "ravel",
    "zeros",
    "empty",
    "ones",
}
SOURCES = sorted(Path(planner.__file__).parent.rglob("*.py"))


def leaves():
    """(module, name, body) of every leaf kernel."""
    for source in (path for path in SOURCES if "@leaf" in path.read_text()):
        for node in ast.walk(ast.parse(source.read_text())):
            if isinstance(node, ast.FunctionDef) and any(ast.unparse(d) == "leaf" for d in node.decorator_list):
                yield source.stem, node.name, node


@pytest.mark.parametrize("leaf", list(leaves()), ids=lambda leaf: f"{leaf[0]}.{leaf[1]}")
def test_a_leaf_kernel_calls_nothing_that_makes_arrays(leaf):
    called = {
        node.func.attr
        for node in ast.walk(leaf[2])
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute)
    }
    assert not called & MAKE_ARRAYS


def test_there_are_leaf_kernels():
    assert len(list(leaves())) > 20
