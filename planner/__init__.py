"""The global planner: a pure function from a problem to a plan. It imports neither Temporal nor a database.

`solve` is the entry point; `last_resort` and `owner_priority` solve again if a plan leaves demand unserved. Packages,
upper layers first: cli, explain, fleet and transition, bound, exact and verify, generate, core and io.
"""
