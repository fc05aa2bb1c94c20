"""Processes, files and addresses on one machine: start, supervision, forks, identity, ports, atomic writes.

For all of `ipnext.infra` and `ipnext dev`. Begin with `spawn` and `child`; `fork_server` has processes that start in
milliseconds. Why not the standard library's: docs/decisions/0022.
"""
