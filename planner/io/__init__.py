"""Problems as JSON: read strictly and quickly at 100,000 models, a slice at a time.

For the CLI and the solver's process. Begin with `problem`. docs/planner.md has the form; pydantic validates a slice,
not the whole file at once, to save memory.
"""
