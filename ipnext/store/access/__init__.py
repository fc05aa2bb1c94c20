"""Keys, roles, owners with their quotas, access lists and the audit, as tables.

Parts of the repository: `ipnext.store.repository` has them all. Begin with `keys` and `audit`.
"""
