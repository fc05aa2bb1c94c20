"""Programs without in-place writes.

Only such programs are stored, since an operation that writes could write anywhere.
"""

import operator
import warnings

import torch
from torch import fx
from torch.export import ExportedProgram

from ipnext.errors import UnsupportedModel
from serving.engines.torch.fx.direct_calls import is_mutable

_INNER_BATCH_NORM = torch.ops.aten._native_batch_norm_legit_no_training.default  # noqa: SLF001  # torch's name


def functional(exported: ExportedProgram) -> ExportedProgram:
    """Replace each in-place write by a new tensor; nothing else changes, and most programs not at all.

    A program that changes a buffer or an input declares that as an output. UnsupportedModel if torch cannot do it.
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
    _restore_batch_norms(found.graph_module)
    return found


def _restore_batch_norms(module: fx.GraphModule) -> None:
    """Replace the inner form of batch_norm, whose kernel trusts its arguments' shapes, by the outer one."""
    inner = [node for node in module.graph.nodes if node.target is _INNER_BATCH_NORM]
    for node in inner:
        values = next((user for user in node.users if user.target is operator.getitem and user.args[1] == 0), None)
        if values is None or any(user.users for user in node.users if user is not values):
            continue  # its further results are used: the list of operators refuses it
        *tensors, momentum, eps = node.args
        with module.graph.inserting_before(values):
            outer = module.graph.call_function(
                torch.ops.aten.batch_norm.default, (*tensors, False, momentum, eps, False)
            )
        outer.meta = dict(values.meta)
        name = values.name
        values.replace_all_uses_with(outer)
        for user in list(node.users):
            module.graph.erase_node(user)
        module.graph.erase_node(node)
        outer.name = name
    if inner:
        module.recompile()
