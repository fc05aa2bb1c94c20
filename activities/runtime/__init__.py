"""Temporal runtime of every activity: heartbeats, the lease of an attempt, fences, deadlines, errors by type.

For all of `activities`; imports none of it. Begin with `heartbeat`. The Python SDK sends no heartbeats by itself, so an
interceptor does.
"""
