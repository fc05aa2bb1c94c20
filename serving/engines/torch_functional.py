"""A program without writes in place: only such programs are stored, since an operation that writes could write anywhere."""

import warnings

import torch
from torch.export import ExportedProgram

from ipnext.errors import UnsupportedModel
from serving.engines.torch_calls import is_mutable


def functional(exported: ExportedProgram) -> ExportedProgram:
    """The same program with each write in place as a new tensor; nothing else changes, and most programs not at all.

    A program that changes a buffer or an input names that as an output of its own. UnsupportedModel if torch can't do it.
    """
    if not any(is_mutable(node) for node in exported.graph.nodes):
        return exported
    try:
        with warnings.catch_warnings(), torch.no_grad():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own, about its own pytrees
            found: ExportedProgram = exported.run_decompositions({})
    except (RuntimeError, ValueError, AssertionError) as error:
        msg = f"the module writes in place in a way that cannot be taken apart: {error}"
        raise UnsupportedModel(msg) from error
    return found
