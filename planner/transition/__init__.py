"""Waves that take a fleet from its placement to a target without breaking a rule on the way.

For `planner.solve`'s callers and the platform's mover. Begin with `planner`, which lists the ladder of searches in its
order (decision 0071). They improve a `Trajectory`, in which a `TransitionInstance` has a `ModelState` for each model.
"""
