"""Kernels that Python calls have an entry for it: a call of another one would jump into nothing."""

import ast
from pathlib import Path

import planner

KERNELS, ENTRY = {"kernel", "leaf"}, "entry_kernel"
ROOT = Path(planner.__file__).parent.parent


def read_modules():
    """Module -> its functions as (name, decorators, called names), and the module that each imported name is of."""
    for source in sorted((ROOT / "planner").rglob("*.py")):
        name = source.relative_to(ROOT).with_suffix("").as_posix().replace("/", ".")
        nodes = list(ast.walk(ast.parse(source.read_text())))
        functions = [
            (
                node.name,
                {ast.unparse(each) for each in node.decorator_list},
                {c.func.id for c in ast.walk(node) if isinstance(c, ast.Call) and isinstance(c.func, ast.Name)},
            )
            for node in nodes
            if isinstance(node, ast.FunctionDef)
        ]
        imports = [
            (node.module, each.name) for node in nodes if isinstance(node, ast.ImportFrom) for each in node.names
        ]
        yield name, functions, {name: module for module, name in imports}


def test_python_calls_entry_kernels_only():
    modules = list(read_modules())
    decorators = {(module, name): found for module, functions, _ in modules for name, found, _ in functions}
    called = {
        (imports.get(name, module), name)
        for module, functions, imports in modules
        for _, own, names in functions
        if not own & {*KERNELS, ENTRY}
        for name in names
    }
    assert {place for place in called if decorators.get(place, set()) & KERNELS} == set()
    assert len({place for place in called if ENTRY in decorators.get(place, set())}) >= 4
