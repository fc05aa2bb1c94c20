"""Large documents of snapshots: parsed one at a time, and JSON files judged in a process of their own.

For the other validators. Begin at `parsing`.
"""
