"""Desired and observed state of models and regions, and shares after a failover. Nothing here decides a step.

For all packages of `activities` but `runtime`. Begin with `desired` and `observed`.
"""
