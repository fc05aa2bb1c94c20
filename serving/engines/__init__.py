"""Engines: the code that runs a part inside a host.

For the host, and for the commands that make snapshots. Begin with `base`, the protocol that an engine implements;
`torch` is the built-in one.
"""
