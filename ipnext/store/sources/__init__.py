"""Sources of models, and the versions that they found, as tables.

Parts of the repository: `ipnext.store.repository` has them all. Begin with `sources`, then `versions`.
"""
