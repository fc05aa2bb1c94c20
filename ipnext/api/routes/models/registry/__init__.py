"""Routes for snapshots: their upload, profiles and denials, and the sources that they come from.

For the application. Begin with `artifacts` and `sources`.
"""
