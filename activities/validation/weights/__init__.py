"""Validators that read weights: checkpoints, adapters, deltas, and finite numbers.

For `activities.validation.activities`. Begin with `finite_weights`, the shortest one.
"""
