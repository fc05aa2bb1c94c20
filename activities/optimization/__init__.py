"""Module Optimization: splits a model's program into parts, in a process of its own.

For the worker and `activities.preparation`. Begin with `activities`.
"""
