"""Changes of models and of the fleet: messages of workflows and activities, conditions, reasons, checks and stages.

For workflows, activities, store and API. Begin with `changes` and `status`. Recorded histories have these messages:
add fields with defaults; never change a type.
"""
