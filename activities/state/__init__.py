"""Desired and observed state of models and regions; `routes` has what routers serve. Nothing here decides a step.

For all packages of `activities` but `runtime`. Begin with `desired` and `observed`.
"""
