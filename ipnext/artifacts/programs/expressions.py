"""Parser of a program's expressions for sizes. Nothing is evaluated here.

The exporter writes them as calls: `Mul(Integer(3), Symbol('s0', positive=True, integer=True))`. torch would pass the
text to `sympy.sympify`, which evaluates it as Python; hosts build the expression from this parser's result instead.
"""

import math
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Final, TypeAlias

LONGEST: Final = 10_000
"""Characters of one expression."""
MOST_CALLS: Final = 100
DEEPEST: Final = 20
LARGEST_EXPONENT: Final = 8
MOST_POWERS: Final = 4
"""With the largest exponent: numbers of some 260,000 bits, so that evaluation ends."""
MOST_TERMS: Final = 100
"""Most terms of an expression multiplied out, as sympy does it to divide: their number grows with powers and
products of sums."""
HIGHEST_DEGREE: Final = 64
"""Highest degree of a term."""

SYMBOL: Final = re.compile(r"(?:s|u|zf|zuf)\d{1,6}")
"""Names of symbols: backed and unbacked sizes, floats."""

_ANY: Final = (1, MOST_CALLS)
FUNCTIONS: Final[Mapping[str, tuple[int, int]]] = {
    **dict.fromkeys(("Add", "Mul", "Max", "Min", "And", "Or"), _ANY),
    **dict.fromkeys(("Not", "Identity", "CeilToInt", "FloorToInt", "TruncToInt", "TruncToFloat"), (1, 1)),
    **dict.fromkeys(("RoundToInt", "ToFloat"), (1, 1)),
    **dict.fromkeys(("Mod", "PythonMod", "FloorDiv", "CleanDiv", "CeilDiv", "IntTrueDiv", "FloatTrueDiv"), (2, 2)),
    **dict.fromkeys(("GreaterThan", "LessThan", "StrictGreaterThan", "StrictLessThan"), (2, 2)),
    **dict.fromkeys(("Equality", "Unequality"), (2, 2)),
    **dict.fromkeys(("Pow", "PowByNatural", "FloatPow"), (2, 2)),
    **dict.fromkeys(("ModularIndexing", "Where"), (3, 3)),
}
"""Function -> least and most arguments. In addition there are Symbol, Integer, Rational and Float."""
_POWERS: Final = frozenset({"Pow", "PowByNatural", "FloatPow"})
ASSUMPTIONS: Final = frozenset({"positive", "integer", "nonnegative", "real"})
CONSTANTS: Final = frozenset({"oo", "true", "false"})
LARGEST_INTEGER: Final = 2**63 - 1

_TOKEN: Final = re.compile(
    r"\s*(?:(?P<name>[A-Za-z_]\w*)|(?P<number>-?\d+)|'(?P<text>[^'\\\n]*)'|(?P<sign>[(),=]))", re.ASCII
)
_FLOAT: Final = re.compile(r"-?\d{1,40}(?:\.\d{1,40})?(?:e[+-]?\d{1,3})?", re.ASCII)


class MalformedExpression(ValueError):
    """Text that is no expression of the allowed form."""


@dataclass(frozen=True, slots=True)
class Symbol:
    """A free size."""

    name: str
    assumptions: Mapping[str, bool] = field(default_factory=dict)


@dataclass(frozen=True, slots=True)
class Call:
    """A function of FUNCTIONS with its arguments."""

    function: str
    arguments: tuple["Expression", ...]


@dataclass(frozen=True, slots=True)
class Ratio:
    """A fraction of whole numbers."""

    numerator: int
    denominator: int


@dataclass(frozen=True, slots=True)
class Decimal:
    """A floating-point number as text, and its precision in bits."""

    text: str
    precision: int


Expression: TypeAlias = Symbol | Call | Ratio | Decimal | int | str
"""An int is a whole number, a string is one of CONSTANTS."""


def parse_expression(text: object) -> Expression:
    """Return the tree of an expression.

    Raises MalformedExpression if it contains anything except calls of the allowed functions on numbers and symbols.
    """
    if not isinstance(text, str) or len(text) > LONGEST:
        msg = f"an expression is a text of at most {LONGEST} characters"
        raise MalformedExpression(msg)
    parser = _Parser(tuple(_tokens(text)))
    found = parser.expression(0)
    parser.end()
    _expand(found)
    return found


def _expand(expression: Expression) -> tuple[int, int]:
    """Return terms and degree of an expression multiplied out.

    MalformedExpression if it, or a part of it, has too many.
    """
    if not isinstance(expression, Call):
        return 1, int(isinstance(expression, Symbol))
    terms, degrees = zip(*map(_expand, expression.arguments), strict=True)
    found = _expanded_call(expression, terms, degrees)
    if found[0] > MOST_TERMS or found[1] > HIGHEST_DEGREE:
        msg = (
            f"{expression.function} has {found[0]} terms of degree {found[1]} when it is multiplied out; "
            f"allowed: {MOST_TERMS} of degree {HIGHEST_DEGREE}"
        )
        raise MalformedExpression(msg)
    return found


def _expanded_call(call: Call, terms: tuple[int, ...], degrees: tuple[int, ...]) -> tuple[int, int]:
    exponent = call.arguments[1] if call.function in _POWERS else None
    if isinstance(exponent, int):
        return terms[0] ** abs(exponent), degrees[0] * abs(exponent)
    if call.function == "Mul":
        return math.prod(terms), sum(degrees)
    if call.function == "Add":
        return sum(terms), max(degrees)
    return max(terms), max(degrees)


def _tokens(text: str) -> Iterator[tuple[str, str]]:
    position = 0
    text = text.rstrip()
    while position < len(text):
        found = _TOKEN.match(text, position)
        if found is None:
            msg = f"{text[position : position + 20]!r} has no place in an expression"
            raise MalformedExpression(msg)
        kind = str(found.lastgroup)
        yield kind, found[kind]
        position = found.end()


class _Parser:
    def __init__(self, tokens: tuple[tuple[str, str], ...]) -> None:
        self._tokens = tokens
        self._next = 0
        self._calls = 0
        self._powers = 0

    def expression(self, depth: int) -> Expression:
        name = self._take("name")
        if name in CONSTANTS:
            return name
        self._calls += 1
        if depth > DEEPEST or self._calls > MOST_CALLS:
            msg = f"it has more than {MOST_CALLS} calls, or more than {DEEPEST} one in the other"
            raise MalformedExpression(msg)
        self._sign("(")
        found = self._call(name, depth)
        self._sign(")")
        return found

    def end(self) -> None:
        if self._next != len(self._tokens):
            msg = f"{self._tokens[self._next][1]!r} follows where it should end"
            raise MalformedExpression(msg)

    def _call(self, name: str, depth: int) -> Expression:
        match name:
            case "Symbol":
                return self._symbol()
            case "Integer":
                return self._integer()
            case "Rational":
                numerator = self._integer()
                self._sign(",")
                return Ratio(numerator, self._integer() or 1)
            case "Float":
                return self._decimal()
        if name not in FUNCTIONS:
            allowed = ", ".join(sorted({*FUNCTIONS, "Symbol", "Integer", "Rational", "Float"}))
            msg = f"{name!r} is not allowed; allowed: {allowed}"
            raise MalformedExpression(msg)
        return self._function(name, depth)

    def _function(self, name: str, depth: int) -> Call:
        arguments = [self.expression(depth + 1)]
        while self._peek() == ("sign", ","):
            self._sign(",")
            arguments.append(self.expression(depth + 1))
        least, most = FUNCTIONS[name]
        if not least <= len(arguments) <= most:
            msg = f"{name} takes {least} to {most} arguments, not {len(arguments)}"
            raise MalformedExpression(msg)
        if name in _POWERS:
            self._check_power(name, arguments[1])
        return Call(name, tuple(arguments))

    def _check_power(self, name: str, exponent: Expression) -> None:
        self._powers += 1
        whole = isinstance(exponent, int) and abs(exponent) <= LARGEST_EXPONENT
        if not (whole or exponent == Ratio(1, 2)) or self._powers > MOST_POWERS:
            msg = f"an exponent of {name} is a whole number up to {LARGEST_EXPONENT}, in at most {MOST_POWERS} powers"
            raise MalformedExpression(msg)

    def _symbol(self) -> Symbol:
        name = self._take("text")
        if SYMBOL.fullmatch(name) is None:
            msg = f"{name!r} is no name of a symbol, such as 's0'"
            raise MalformedExpression(msg)
        given: dict[str, bool] = {}
        while self._peek() == ("sign", ","):
            self._sign(",")
            assumption = self._take("name")
            self._sign("=")
            value = self._take("name")
            if assumption not in ASSUMPTIONS or value not in {"True", "False"}:
                msg = f"{assumption}={value} is not allowed of a symbol; allowed: {', '.join(sorted(ASSUMPTIONS))}"
                raise MalformedExpression(msg)
            given[assumption] = value == "True"
        return Symbol(name, given)

    def _integer(self) -> int:
        text = self._take("number")
        if len(text) > 20 or abs(int(text)) > LARGEST_INTEGER:
            msg = f"{text[:30]} is beyond 64 bits"
            raise MalformedExpression(msg)
        return int(text)

    def _decimal(self) -> Decimal:
        text = self._take("text")
        self._sign(",")
        if self._take("name") != "precision" or _FLOAT.fullmatch(text) is None:
            msg = f"Float({text[:30]!r}) is no number with its precision"
            raise MalformedExpression(msg)
        self._sign("=")
        precision = self._integer()
        if not 1 <= precision <= 256:
            msg = f"a precision of {precision} bits is beyond 256"
            raise MalformedExpression(msg)
        return Decimal(text, precision)

    def _peek(self) -> tuple[str, str]:
        return self._tokens[self._next] if self._next < len(self._tokens) else ("end", "")

    def _take(self, kind: str) -> str:
        found, value = self._peek()
        if found != kind:
            msg = f"{value[:30]!r} stands where a {kind} is needed" if value else f"it ends where a {kind} is needed"
            raise MalformedExpression(msg)
        self._next += 1
        return value

    def _sign(self, sign: str) -> None:
        if self._take("sign") != sign:
            msg = f"{sign!r} is missing"
            raise MalformedExpression(msg)
