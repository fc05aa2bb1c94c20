"""Access rights as data: roles, principals, keys, owners, access to predictions, the audit and its chain.

For every package; `ipnext.access` decides by it. Imports base values only. Begin with `rights` and `owner`.
"""
