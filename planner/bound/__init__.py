"""The proof: a lower bound for the cost of every plan, from which the reported gap follows.

For `planner.fleet`. Begin with `bound`. By Lagrangian relaxation of what models share; docs/planner-benchmarks.md compares it with HiGHS.
"""
