"""Waves that take a fleet from its placement to a target without breaking a rule on the way.

For `planner.solve`'s callers and the platform's mover. Begin with `planner`, which holds the ladder of searches in its
order.
"""
