"""Golden requests of a snapshot: written at its export, with the outputs of the module itself."""

from collections.abc import Iterator, Mapping
from pathlib import Path

import torch
from torch import nn

from ipnext.errors import InvalidInput
from ipnext.model.registry.checking import GOLDEN_FILE, GoldenOutput, GoldenRequest, GoldenSet, GoldenTensor
from ipnext.model.registry.registry import Signature, TensorSpec
from ipnext.model.value import canonical_json
from serving.engines.torch.engine import to_numpy
from serving.export.checks import name_outputs
from serving.protocol.signature import check_inputs
from serving.protocol.tensors import Tensor, to_json

Inputs = Mapping[str, torch.Tensor]


def write_golden(module: nn.Module, golden: Mapping[str, Inputs], signature: Signature, draft: Path) -> None:
    """Write requests by name, with what `module` answers. InvalidInput if one does not fit the signature."""
    found = GoldenSet(requests=tuple(_request(module, name, inputs, signature) for name, inputs in golden.items()))
    (draft / GOLDEN_FILE).write_text(canonical_json(found), encoding="utf-8")


def _request(module: nn.Module, name: str, inputs: Inputs, signature: Signature) -> GoldenRequest:
    datatypes = {spec.name: spec.datatype for spec in signature.inputs}
    given = {key: Tensor(datatypes.get(key, "FP32"), to_numpy(tensor)) for key, tensor in inputs.items()}
    try:
        check_inputs(given, signature)
    except InvalidInput as error:
        msg = f"golden: request {name!r}: {error.message}"
        raise InvalidInput(msg, field="golden") from error
    answer = name_outputs(module(**{key: tensor.clone() for key, tensor in inputs.items()}))
    return GoldenRequest(
        name=name,
        inputs=tuple(GoldenTensor(**fields) for fields in _fields(signature.inputs, inputs)),
        outputs=tuple(GoldenOutput(**fields) for fields in _fields(signature.outputs, answer)),
    )


def _fields(specs: tuple[TensorSpec, ...], tensors: Inputs) -> Iterator[dict[str, object]]:
    for spec in specs:
        tensor = Tensor(spec.datatype, to_numpy(tensors[spec.name].detach()))
        yield {
            "name": spec.name,
            "datatype": spec.datatype,
            "shape": tensor.shape,
            "data": to_json(spec.name, tensor),
        }
