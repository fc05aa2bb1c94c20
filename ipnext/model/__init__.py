"""The generalized data model: frozen pydantic values, no I/O."""
