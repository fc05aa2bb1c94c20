"""The planner's problem and plan, transitions between plans, and their explanation: wire forms that others may read.

For planner, activities, store and API. Begin with `plan` and `transition`.
"""
