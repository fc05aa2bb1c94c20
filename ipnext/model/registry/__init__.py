"""The registry: snapshots, generations, parts and their graph, adapters, deltas, profiles and permitted signers.

For every package. Begin with `registry`.
"""
