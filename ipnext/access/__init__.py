"""Access control: API keys, principals, and the policies that decide what a principal may do.

Imported by the API, the CLI and `ipnext dev`; does not know the store, and speaks HTTP only
to an identity provider, for its keys. Begin with `actions.py` (every action and its
role) and `policies.cedar` (the rules).
"""
