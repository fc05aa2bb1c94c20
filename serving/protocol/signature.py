"""Check of a request's tensors against a part's signature. Hosts run it before the engine gets the tensors."""

from collections.abc import Mapping, Sequence

from ipnext.errors import InvalidInput
from ipnext.model.registry.registry import Signature, TensorSpec
from serving.protocol.tensors import Tensor


def check_inputs(inputs: Mapping[str, Tensor], signature: Signature) -> None:
    """Check that names, datatypes and shapes match the signature. If dimension 0 is free, it is one batch >= 1 for all.

    Request inputs may have batch 1 instead.
    """
    _check_names(inputs, signature)
    for spec in signature.inputs:
        check_tensor(spec, inputs[spec.name])
    _check_batch(inputs, signature)


def _check_names(inputs: Mapping[str, Tensor], signature: Signature) -> None:
    known = [spec.name for spec in signature.inputs]
    for name in known:
        if name not in inputs:
            msg = f"input {name!r} is missing; the inputs are {', '.join(known)}"
            raise InvalidInput(msg, field=name, allowed=known)
    for name in inputs:
        if name not in known:
            raise _unknown(name, known)


def _unknown(name: str, known: Sequence[str]) -> InvalidInput:
    msg = f"input {name!r} does not exist; the inputs are {', '.join(known)}"
    return InvalidInput(msg, field=name, allowed=known)


def _check_datatype(spec: TensorSpec, datatype: str) -> None:
    if datatype != spec.datatype:
        msg = f"input {spec.name!r}: datatype must be {spec.datatype}, got {datatype}"
        raise InvalidInput(msg, field=spec.name, value=datatype, allowed=(spec.datatype,))


def check_takes_bytes(name: str, signature: Signature) -> None:
    """Raise InvalidInput if the input does not exist, or its datatype is not BYTES."""
    known = [spec.name for spec in signature.inputs]
    spec = next((spec for spec in signature.inputs if spec.name == name), None)
    if spec is None:
        raise _unknown(name, known)
    _check_datatype(spec, "BYTES")


def check_tensor(spec: TensorSpec, tensor: Tensor) -> None:
    """Check that datatype and shape match the signature; InvalidInput."""
    _check_datatype(spec, tensor.datatype)
    fits = len(tensor.shape) == len(spec.shape) and all(
        want in (-1, got) for want, got in zip(spec.shape, tensor.shape, strict=True)
    )
    if not fits:
        msg = f"input {spec.name!r}: shape must be {list(spec.shape)} (-1: any size), got {list(tensor.shape)}"
        raise InvalidInput(msg, field=spec.name, value=list(tensor.shape))


def _check_batch(inputs: Mapping[str, Tensor], signature: Signature) -> None:
    batched = [spec.name for spec in signature.inputs if spec.shape and spec.shape[0] == -1]
    sizes = {name: inputs[name].shape[0] for name in batched}
    own = {size for name, size in sizes.items() if name not in signature.request_inputs or size != 1}
    if len(own) > 1 or 0 in own:
        once = f"; {', '.join(signature.request_inputs)} may have 1" if signature.request_inputs else ""
        msg = f"inputs must have one batch size >= 1 in dimension 0{once}, got {sizes}"
        raise InvalidInput(msg, field=batched[-1], value=sizes)
