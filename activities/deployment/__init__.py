"""Module Deployment.

Begin and end of a change, pauses, freezes, and the repetition of changes that a lost region made fail. For the worker
and `activities.preparation`. Begin with `activities`.
"""
