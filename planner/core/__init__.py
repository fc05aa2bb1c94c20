"""Shared by all methods: the problem by index and as arrays, solutions, figures, unmet reasons, the diff of two plans.

For all of `planner`; imports none of its packages. Begin with `solution`: a plan from a method's numbers.
"""
