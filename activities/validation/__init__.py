"""Module Validation: files, weights, schemas, signatures, checkpoints, adapters, deltas and programs of a generation under test.

For the worker and `activities.preparation`. Begin with `activities`, which runs the validators; `validator` says what one is.
"""
