"""Module Deployment: begin and end of a change, holds, freezes, and the repetition of changes that a lost region was in the way of.

For the worker and `activities.preparation`. Begin with `activities`.
"""
