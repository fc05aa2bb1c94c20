"""Routes for keys, roles, sessions and the audit.

For the application. Begin with `keys`.
"""
