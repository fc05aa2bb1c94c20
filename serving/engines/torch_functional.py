"""A program without changes in place: a cut may pass between two writes to one tensor only where there are none."""

import warnings
from collections.abc import Mapping
from typing import Any

import torch

from ipnext.errors import UnsupportedModel
from serving.engines.torch_program import graph_document, rebuild


def functional_document(document: Mapping[str, Any], tensors: Mapping[str, torch.Tensor]) -> dict[str, Any]:
    """The same program with each write in place as a new tensor; operations keep their modules, and nothing else changes.

    `tensors` are the weights by their names in the document. UnsupportedModel where torch cannot do it.
    """
    exported = rebuild(document["program"], tensors)
    stacks = _stacks(document)
    for node in exported.graph.nodes:
        if node.op == "call_function":
            node.meta["nn_module_stack"] = stacks.get(node.name, {"": ("", "")})
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # torch's own, about its own pytrees
            functional = exported.run_decompositions({})
    except (RuntimeError, ValueError, AssertionError) as error:
        msg = f"the program writes in place in a way that cannot be taken apart: {error}"
        raise UnsupportedModel(msg) from error
    return {**document, "program": graph_document(functional)}


def _stacks(document: Mapping[str, Any]) -> dict[str, dict[str, tuple[str, str]]]:
    """Name of a node, or of one of its results -> the modules around it, as the export had them."""
    found: dict[str, dict[str, tuple[str, str]]] = {}
    for raw in document["program"]["graph_module"]["graph"]["nodes"]:
        entries = [e.split(",") for e in raw["metadata"].get("nn_module_stack", "").split(";") if e.count(",") == 2]
        stack = {key: (path, name) for key, path, name in entries}
        results = [item for form in raw["outputs"] for value in form.values() for item in _listed(value)]
        for name in (raw["name"], *(item.get("name") or item.get("as_name") for item in results)):
            found[str(name)] = stack
    return found


def _listed(value: Any) -> list[Any]:
    return value if isinstance(value, list) else [value]
