"""Module Transition: a wave's capacity, traffic, gates and releases, reverts, and the takeover of a run that is gone.

For the worker and `activities.preparation`. Begin with `activities`; `wave_context` has the inputs of each step.
"""
