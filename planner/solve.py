"""stub"""
from collections.abc import Collection

from ipnext.model.plan import Plan, Problem


def solve(problem: Problem) -> Plan:
    """The plan."""
    raise NotImplementedError


def place(problem: Problem, models: Collection[str]) -> Plan:
    """Incremental."""
    raise NotImplementedError
