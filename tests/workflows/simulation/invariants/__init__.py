"""Invariants, checked from outside after every step: a module for each subject.

They read hosts, gateways and supply as they are, not as they are stored.
"""
