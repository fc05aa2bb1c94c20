"""Module Planner.

Problems from the store, plans from the solver's process, their adoption, and the moves that they require. For the
worker, and for packages above it that need a problem or the plan in force. Begin with `activities` and
`replan_activities`.
"""
