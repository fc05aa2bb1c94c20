"""Plans, the plan in force model by model, replans and their moves, as tables.

Parts of the repository: `ipnext.store.repository` has them all. Begin with `plans` and `placements`.
"""
