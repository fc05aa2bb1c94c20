"""Manifests, as people write them, and all that follows from one without I/O.

For API, command line, activities and planner. Begin with `manifest` and `parser`; `derived` has parts and figures.
"""
