"""What every activity needs of Temporal: heartbeats, the lease of an attempt, fences, deadlines, errors by type.

For all of `activities`; imports none of it. Begin with `heartbeat`. The Python SDK has no heartbeats of its own accord, so an interceptor sends them.
"""
