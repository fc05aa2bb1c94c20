"""Desired and observed state of models and regions: what the store wants, what runs, who fails over to whom. Nothing here decides a step.

For all packages of `activities` but `runtime`. Begin with `desired` and `observed`.
"""
