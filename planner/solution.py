"""stub"""
from ipnext.model.plan import Plan, Problem
from ipnext.model.value import Value


class Violation(Value):
    """A rule that a plan or transition breaks, where, and in words."""

    rule: str
    subject: str
    message: str


def check(problem: Problem, plan: Plan) -> tuple[Violation, ...]:
    """Every rule of the problem that the plan breaks."""
    raise NotImplementedError
