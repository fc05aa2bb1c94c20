"""Hosts of a region: their start, their snapshots, probes, limits and logs.

For the agent; `ipnext dev` uses `limit` and `log_retention`. Begin with `replica`.
"""
