"""The fleet, models, snapshots with their generations, profiles, and accounts of stored bytes, as tables.

Parts of the repository: `ipnext.store.repository` has them all. Begin with `models` and `snapshots`.
"""
