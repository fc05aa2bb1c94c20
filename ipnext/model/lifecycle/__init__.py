"""Changes of models: messages of workflows and activities, conditions, reasons, controls, drains and repairs.

For workflows, activities, store and API. Begin with `messages` and `status`. Recorded histories have these messages:
add fields with defaults; never change a type.
"""
