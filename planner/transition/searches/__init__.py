"""Searches for a way on if models are blocked: other orders and other states on the way.

For `planner.transition.planner`, which tries them in its order. Begin with `order_search`.
"""
