"""Regions that leave and are restored.

Drains, failover, recovery, and the reconciliation of every region with the store. For the worker; transitions use
`recovery`. Begin with `activities` and `reconciliation`.
"""
