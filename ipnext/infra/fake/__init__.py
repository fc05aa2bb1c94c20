"""The fake infrastructure: the same port, all in memory, with faults that a test switches on.

For tests and benchmarks. Begin with `infrastructure`.
"""
