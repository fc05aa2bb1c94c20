"""The schema of `program.json` of the torch engine, checked without torch.

For the client, validation and the torch engine. Begin with `reader` and `schema`. Why: docs/decisions/0026.
"""
