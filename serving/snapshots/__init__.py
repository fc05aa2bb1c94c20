"""Snapshots on a host: fetched by a separate process, checked, kept for their generations within a memory budget.

Independent of engines. For both kinds of hosts; `directory` is for all code that writes snapshots. Begin with
`held_snapshots` and `fetch`.
"""
