"""Export of a torch module as a snapshot: `serving.export.export_model`, for training code.

Importable by all; only this name is for callers outside `serving`. Begin with `export`; `checks` has the refusals, in
terms of the user's code.
"""

from serving.export.export import export_model

__all__ = ["export_model"]
