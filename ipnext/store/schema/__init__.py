"""The schema of a database: its version, the builds that may use it, and its migration.

For the store and `ipnext platform`. Begin with `migration`; the scripts are in `ipnext/store/migrations`.
"""
