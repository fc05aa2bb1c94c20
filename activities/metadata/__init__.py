"""Module Metadata: publishes and applies as the store records them, prefetch, and garbage collection of artifacts.

For the worker and `activities.preparation`. Begin with `activities`.
"""
