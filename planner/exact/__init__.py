"""The plan as one integer program (cvxpy, HiGHS): optimal, for small fleets.

For `planner.solve` and `planner.explain`, which reads its dual prices. Begin with `formulation`: variables, rules and
objective.
"""
