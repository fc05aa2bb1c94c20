"""What a process gives up for good before it sees a snapshot: files, sockets and programs by Landlock, root's powers by capabilities.

For the hosts, and for the processes that they start. Begin with `landlock`. docs/decisions/0051 and 0056 say why.
"""
