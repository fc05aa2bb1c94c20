"""Replans of the fleet: their records, the messages of their workflow, and the moves of models that follow.

For workflows, activities, store and API. Begin with `replan`.
"""
