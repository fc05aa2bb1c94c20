"""The global planner: a pure function from a problem to a plan. Knows no Temporal and no database.

`solve` is the entry; `last_resort` and `owner_priority` solve again where a plan leaves demand unserved. Packages, upper layers
first: cli, explain, fleet and transition, bound, exact and verify, generate, core and io.
"""
