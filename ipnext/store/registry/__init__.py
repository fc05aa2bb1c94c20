"""The fleet, models, snapshots, generations, profiles, and accounts of stored bytes, as tables.

Parts of the repository: `ipnext.store.repository` has them all. Begin with `models`, `snapshots` and `generations`.
"""
