"""Module Metadata: publishes and applies as the store records them, fetches ahead, collection of what nothing names.

For the worker and `activities.preparation`. Begin with `activities`.
"""
