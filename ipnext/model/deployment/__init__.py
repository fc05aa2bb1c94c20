"""Desired state of the infrastructure, and the state that regions report.

For activities, store and infrastructure. Begin with `deployment`; `footprint` has the memory that it takes.
"""
