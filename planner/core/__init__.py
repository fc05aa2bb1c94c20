"""What every method shares: the problem by index and as arrays, the solution, its figures, its unmet reasons, the diff of two plans.

For all of `planner`; imports none of its packages. Begin with `solution`: a plan from a method's numbers.
"""
