"""Requests and answers of the API other than manifests.

For API, client and command line; no other part of the model imports it. Begin with `resources`.
"""
