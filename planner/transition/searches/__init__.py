"""Searches for a way on if models are blocked: other orders, and other states to reach first.

For `planner.transition.planner`, which tries them in its order. Begin with `search`, the interface of all of them.
"""
