"""The router process of a region, its table and its access list.

For the agent. Begin with `process`.
"""
