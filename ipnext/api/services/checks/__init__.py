"""Checks of requests before anything is recorded: manifests, their sources, fleets, and models that are retired.

For the routes. Begin with `manifest`.
"""
