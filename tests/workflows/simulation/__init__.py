"""A deterministic, seeded simulation of what the platform decides.

No Temporal, no store, no process, no clock of its own. One seed is one history: a small fleet, its models, changes of
mind and faults. The decisions are those of the real code; what carries them out is pretended here, step by step, and
every invariant is looked at after each step.
"""
