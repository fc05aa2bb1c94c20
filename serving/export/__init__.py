"""Turns a torch module into a snapshot: `serving.export.export_model`, for training code.

For everybody; only this name is for callers outside of `serving`. Begin with `export`; `checks` says what is refused, in the words of the user's code.
"""

from serving.export.export import export_model

__all__ = ["export_model"]
