"""Snapshots on a host: fetched by a process of its own, checked, held for their generations, within a budget of memory. Knows no engine.

For both kinds of hosts; `directory` is for all that writes snapshots. Begin with `held_snapshots` and `fetch`.
"""
