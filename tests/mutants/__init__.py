"""A sample of faults in the pure modules, each put in on purpose: the fast tier should find them.

A program, not a test: `python -m tests.mutants`.
"""
