"""Access control: API keys, principals, and the policies that decide what a principal may do.

Imported by the API, the CLI and `ipnext dev`; knows neither the store nor HTTP. Begin with `actions.py` (every action and its
role) and `policies.cedar` (the rules).
"""
