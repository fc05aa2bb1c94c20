"""Access control: API keys, principals, and the policies that decide what a principal may do.

The API, the CLI and `ipnext dev` import it; it does not import the store, and uses HTTP only to read an identity
provider's keys. Begin with `actions.py` (every action and its role) and `policies.cedar` (the rules).
"""
