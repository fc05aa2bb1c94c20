"""Deterministic Temporal workflows: they decide, they do no I/O."""
