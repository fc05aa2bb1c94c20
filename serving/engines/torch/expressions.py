"""Builds sympy expressions for torch from trees of ipnext.artifacts.programs.expressions; no text is evaluated."""

from collections.abc import Callable, Mapping
from typing import Any, Final

import sympy
from torch.utils._sympy import functions

from ipnext.artifacts.programs.expressions import FUNCTIONS, Call, Decimal, Expression, Ratio, Symbol, parse_expression

_SYMPY: Final = frozenset(
    {
        *("Add", "Mul", "Pow", "Max", "Min", "And", "Or", "Not", "Equality", "Unequality"),
        *("GreaterThan", "LessThan", "StrictGreaterThan", "StrictLessThan"),
    }
)
_FUNCTIONS: Final[Mapping[str, Callable[..., Any]]] = {
    name: getattr(sympy if name in _SYMPY else functions, name) for name in FUNCTIONS
}
_CONSTANTS: Final[Mapping[str, Any]] = {"oo": sympy.oo, "true": sympy.true, "false": sympy.false}


def build_expression(text: str) -> Any:
    """Return the sympy object that the exporter wrote as `text`. MalformedExpression if it has another form."""
    return _built(parse_expression(text))


def _built(expression: Expression) -> Any:
    match expression:
        case Call(function, arguments):
            return _FUNCTIONS[function](*map(_built, arguments))
        case Symbol(name, assumptions):
            return sympy.Symbol(name, **assumptions)
        case Ratio(numerator, denominator):
            return sympy.Rational(numerator, denominator)
        case Decimal(text, precision):
            return sympy.Float(text, precision=precision)
        case str():
            return _CONSTANTS[expression]
        case int():
            return sympy.Integer(expression)
