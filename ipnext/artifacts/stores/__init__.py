"""Artifact stores and sources: a directory, or a bucket of S3.

For all that open one by its URI. Begin with `locations`; the port is `ipnext.artifacts.port`.
"""
