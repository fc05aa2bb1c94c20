"""The global planner: a pure function from a problem to a plan. Knows no Temporal and no database."""
