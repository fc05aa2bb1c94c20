"""The workflow engine behind a port, and the outbox that brings every recorded change to it.

For the application and its routes. Begin with `port` and `outbox`.
"""
