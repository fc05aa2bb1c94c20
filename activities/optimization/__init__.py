"""Module Optimization: splits a model's program into parts, in a separate process.

For the worker and `activities.preparation`. Begin with `activities`.
"""
