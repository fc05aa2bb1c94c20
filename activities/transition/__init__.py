"""Module Transition: a wave's capacity, traffic, gates and releases, the way back, and the takeover of a run that has gone.

For the worker and `activities.preparation`. Begin with `activities`; `wave_context` says what each step knows.
"""
