"""Faults that a module can be given: one changed operator, constant, condition or result at a time."""

import ast
from collections.abc import Callable, Iterator
from typing import Any, NamedTuple

COMPARISONS: dict[type[ast.cmpop], type[ast.cmpop]] = {
    ast.Lt: ast.LtE,
    ast.LtE: ast.Lt,
    ast.Gt: ast.GtE,
    ast.GtE: ast.Gt,
    ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq,
    ast.In: ast.NotIn,
    ast.NotIn: ast.In,
    ast.Is: ast.IsNot,
    ast.IsNot: ast.Is,
}
OPERATORS: dict[type[ast.operator], type[ast.operator]] = {
    ast.Add: ast.Sub,
    ast.Sub: ast.Add,
    ast.Mult: ast.Div,
    ast.Div: ast.Mult,
    ast.FloorDiv: ast.Mult,
    ast.Mod: ast.FloorDiv,
    ast.BitOr: ast.BitAnd,
    ast.BitAnd: ast.BitOr,
}

MARK = "→"


class Mutant(NamedTuple):
    """One fault of a module. `place` is the number of its node among those that may be given one."""

    line: int
    column: int
    fault: str
    place: int


def list_mutants(source: str) -> list[Mutant]:
    """Return every mutant of a module, in the order of its source. Annotations, docstrings and messages stay."""
    places = enumerate(_list_places(ast.parse(source)))
    found = [Mutant(node.lineno, node.col_offset, fault, place) for place, node in places for fault, _ in _faults(node)]
    return sorted(found, key=lambda mutant: (mutant.line, mutant.fault))


def mutate(source: str, mutant: Mutant) -> str:
    """Return the source of a module with this fault."""
    tree = ast.parse(source)
    node = _list_places(tree)[mutant.place]
    for _, change in _faults(node):
        change(node)
    return ast.unparse(ast.fix_missing_locations(tree))


def quote(source: str, mutant: Mutant) -> str:
    """Return the line of a fault, with a mark where its node begins."""
    line = source.splitlines()[mutant.line - 1].encode()
    return f"{line[: mutant.column].decode()}{MARK}{line[mutant.column :].decode()}".strip()


def _list_places(tree: ast.AST) -> list[Any]:
    skipped = {id(node) for kept in ast.walk(tree) for node in _untouched(kept)}
    return [node for node in ast.walk(tree) if id(node) not in skipped]


def _untouched(node: ast.AST) -> Iterator[ast.AST]:
    """Yield what no test of behavior judges: annotations, decorators, docstrings, texts of errors and of logs."""
    match node:
        case ast.arg() | ast.AnnAssign():
            hidden: list[ast.AST | None] = [node.annotation]
        case ast.FunctionDef() | ast.AsyncFunctionDef():
            hidden = [node.returns, *node.decorator_list]
        case ast.JoinedStr() | ast.Expr(value=ast.Constant()) | ast.If(test=ast.Name(id="TYPE_CHECKING")):
            hidden = [node]
        case _:
            return
    for each in hidden:
        yield from ast.walk(each) if each is not None else ()


def _faults(node: ast.AST) -> Iterator[tuple[str, Callable[[Any], None]]]:
    """Yield the fault that a node may be given, in words, and the change that makes it; at most one."""
    if isinstance(node, ast.Compare) and (other := COMPARISONS.get(type(node.ops[0]))) is not None:
        yield f"{type(node.ops[0]).__name__} becomes {other.__name__}", lambda n: n.ops.__setitem__(0, other())
    elif isinstance(node, ast.BinOp) and (made := OPERATORS.get(type(node.op))) is not None:
        yield f"{type(node.op).__name__} becomes {made.__name__}", lambda n: setattr(n, "op", made())
    elif isinstance(node, ast.BoolOp):
        opposite = ast.Or if isinstance(node.op, ast.And) else ast.And
        yield f"{type(node.op).__name__} becomes {opposite.__name__}", lambda n: setattr(n, "op", opposite())
    elif isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.Not):
        yield "not is dropped", _drop_not
    elif isinstance(node, ast.Constant) and isinstance(node.value, bool):
        yield f"{node.value} becomes {not node.value}", lambda n: setattr(n, "value", not n.value)
    elif isinstance(node, ast.Constant) and isinstance(node.value, int | float):
        yield f"{node.value} becomes {node.value + 1}", lambda n: setattr(n, "value", n.value + 1)
    elif isinstance(node, ast.Return) and node.value is not None and not _is_none(node.value):
        yield "returns None", lambda n: setattr(n, "value", ast.Constant(None))
    elif isinstance(node, ast.If):
        yield "the condition is false", lambda n: setattr(n, "test", ast.Constant(value=False))


def _drop_not(node: ast.UnaryOp) -> None:
    operand = node.operand
    node.op, node.operand = ast.Not(), ast.UnaryOp(ast.Not(), operand)


def _is_none(node: ast.expr) -> bool:
    return isinstance(node, ast.Constant) and node.value is None
