"""Authentication between the platform's processes.

Identities, certificates, Unix sockets, and the allowed callers of each route.
"""
