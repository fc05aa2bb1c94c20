"""Rights that a process gives up for good before it reads a snapshot.

Files, sockets and programs (Landlock), root's capabilities. For the hosts, and for the processes that they start. Begin
with `landlock`. Why: docs/decisions/0051 and 0056.
"""
