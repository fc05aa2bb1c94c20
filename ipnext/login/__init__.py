"""Logins of a user: the file of credentials, the device flow at an identity provider, and which process wrote an entry.

For the client, the command line and `ipnext dev`; the API reads `identity_provider`. Imports errors only. Begin with
`credentials` and `device_flow`.
"""
