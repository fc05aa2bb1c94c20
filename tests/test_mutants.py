"""Mutants: one fault each, in code that tests judge."""

import ast

import pytest

from tests.mutants.__main__ import ROOT, is_equivalent
from tests.mutants.equivalent import EQUIVALENT
from tests.mutants.mutation import list_mutants, mutate, quote

SOURCE = '''
"""A docstring with 1 and True."""
LIMIT: int = 3

def share(taken: int | None, whole: int) -> float | None:
    """Divide."""
    if not whole or taken is None:
        raise ValueError(f"{whole + 1} is nothing")
    return taken / whole
'''


def test_each_mutant_has_one_fault():
    found = list_mutants(SOURCE)

    assert [(mutant.line, mutant.fault) for mutant in found] == [
        (3, "3 becomes 4"),
        (7, "Is becomes IsNot"),
        (7, "Or becomes And"),
        (7, "not is dropped"),
        (7, "the condition is false"),
        (9, "Div becomes Mult"),
        (9, "returns None"),
    ]
    plain = ast.unparse(ast.parse(SOURCE)).splitlines()
    for mutant in found:
        changed = [line for line, kept in zip(mutate(SOURCE, mutant).splitlines(), plain, strict=True) if line != kept]
        assert len(changed) == 1
    assert quote(SOURCE, found[1]) == "if not whole or →taken is None:"


@pytest.mark.parametrize("module", sorted({module for module, _, _ in EQUIVALENT}))
def test_an_equivalent_mutant_is_one_of_its_module(module):
    found = [mutant for mutant in list_mutants((ROOT / module).read_text()) if is_equivalent(module, mutant)]

    named = {(line, fault) for where, line, fault in EQUIVALENT if where == module}
    assert {(quote((ROOT / module).read_text(), mutant), mutant.fault) for mutant in found} == named
