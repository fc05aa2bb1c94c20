"""The proof: a lower bound for the cost of every plan, from which the reported gap follows.

For `planner.fleet`. Begin with `bound`. Lagrangian relaxation of the limits that models share;
docs/planner-benchmarks.md compares it with HiGHS.
"""
