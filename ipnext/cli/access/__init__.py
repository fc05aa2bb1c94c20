"""Commands for identities: login, keys, roles, signatures, the audit.

For `ipnext.cli.app`. Begin with `identity`.
"""
