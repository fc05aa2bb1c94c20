"""Module Validation: files, weights, schemas, signatures, checkpoints, adapters, deltas and programs of a generation.

For the worker and `activities.preparation`. Begin with `activities`, which runs the validators; `validator` has their
protocol.
"""
