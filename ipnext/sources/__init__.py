"""Upstream systems of snapshots: what is new there, and its content.

For the API, which checks sources when a manifest is applied, and for workers, which poll and read them. Begin with
`port`; `kinds` has the built-in kinds and the plug-ins.
"""
