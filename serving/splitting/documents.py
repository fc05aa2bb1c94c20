"""The program document and the signature of one segment."""

import json
from collections.abc import Iterable, Mapping
from typing import Any, Final

from ipnext.errors import InvalidInput
from ipnext.model.registry import Datatype, Signature, TensorSpec
from serving.splitting.carving import Cut, CutProgram
from serving.splitting.nodes import batch_size, product, renamed, tensor_argument
from serving.splitting.sizes import dimension

_LEAF: Final[Mapping[str, Any]] = {"type": None, "context": None, "children_spec": []}
_DATATYPES: Final[Mapping[int, Datatype]] = {
    1: "UINT8", 2: "INT8", 3: "INT16", 4: "INT32", 5: "INT64", 6: "FP16", 7: "FP32", 8: "FP64", 12: "BOOL", 13: "BF16",
    28: "UINT16", 34: "UINT32", 35: "UINT64",
}  # fmt: skip
"""By the numbers of torch's schema."""


class SegmentDocument:
    """Writes the document of a cut. Values keep their names but for those that come from other segments."""

    def __init__(self, whole: CutProgram, cut: Cut) -> None:
        self._whole = whole
        self._program = whole.program
        self._cut = cut
        self._nodes: list[dict[str, Any]] = []
        self._tensors: dict[str, Any] = {}
        self._sizes: dict[str, Any] = {}
        self._names: dict[str, str] = {}

    def document(self) -> dict[str, Any]:
        """In the form of `program.json`."""
        cut, program = self._cut, self._program
        inputs = self._whole.sources(cut)
        self._receive()
        self._tell_sizes(inputs)
        for index in sorted(cut.operations):
            self._keep(program.operations[index].raw)
        outputs = self._send() | dict(cut.answers)
        specs = [*self._weight_specs(), *({"user_input": {"arg": tensor_argument(name)}} for name in inputs)]
        weights = [w for w in program.weights.values() if w.name in cut.weights]
        self._describe([*(w.name for w in weights), *cut.requests])
        return {
            "format": program.document["format"],
            "inputs": list(inputs),
            "outputs": list(outputs),
            "tensors": {w.place: program.document["tensors"][w.place] for w in weights},
            "program": self._program_document([*(w.name for w in weights), *inputs], outputs, specs),
        }

    def signature(self) -> Signature:
        """The tensors that the segment takes and gives."""
        program, whole = self._program, self._whole
        asked = {name: program.graph["tensor_values"][name] for name in program.inputs if name in self._cut.requests}
        taken = {whole.names[value]: whole.wires[value].meta for value in self._cut.edges}
        given = {whole.names[value]: whole.wires[value].meta for value in self._cut.sends}
        answers = {name: program.graph["tensor_values"][value] for name, value in self._cut.answers.items()}
        return Signature(inputs=_specs(asked | taken), outputs=_specs(given | answers))

    def _receive(self) -> None:
        for value in self._cut.edges:
            name, wire = self._whole.names[value], self._whole.wires[value]
            self._tensors[name] = wire.meta
            self._names[value] = name
            for number, step in enumerate(wire.receive):
                result = f"{name}_back_{number}"
                self._add(step.node(self._names[value], result), result, step.meta)
                self._names[value] = result

    def _send(self) -> dict[str, str]:
        """Output name -> value."""
        found: dict[str, str] = {}
        for value in self._cut.sends:
            name, at = self._whole.names[value], self._names.get(value, value)
            for number, step in enumerate(self._whole.wires[value].send):
                result = f"{name}_sent_{number}"
                self._add(step.node(at, result), result, step.meta)
                at = result
            found[name] = at
        return found

    def _tell_sizes(self, inputs: Iterable[str]) -> None:
        """Sizes that the batch tells are read from an input, so that no tensor is sent for its size alone."""
        program = self._program
        wanted = {name: size for name in self._cut.sizes if (size := program.size(name)) is not None}
        if not wanted:
            return
        first = {name: meta["sizes"][0] for name in inputs if (meta := self._meta_of_input(name))["sizes"]}
        source = next(name for name, size in first.items() if dimension(size).text == program.batch)
        self._nodes.append(batch_size(source, "batch_size_here"))
        self._sizes["batch_size_here"] = first[source]
        for name in sorted(wanted):
            times = wanted[name].times(program.batch) or 1
            if times == 1:
                self._names[name] = "batch_size_here"
            else:
                self._nodes.append(product("batch_size_here", times, name))
                self._sizes[name] = program.graph["sym_int_values"][name]

    def _meta_of_input(self, name: str) -> Mapping[str, Any]:
        found: Mapping[str, Any] = self._tensors.get(name) or self._program.graph["tensor_values"][name]
        return found

    def _keep(self, raw: Mapping[str, Any]) -> None:
        self._nodes.append({**raw, "inputs": [{**i, "arg": renamed(i["arg"], self._names)} for i in raw["inputs"]]})
        self._describe(name for item in raw["outputs"] for name in _names(item))

    def _describe(self, names: Iterable[str]) -> None:
        graph = self._program.graph
        for name in names:
            if name in graph["tensor_values"]:
                self._tensors[name] = graph["tensor_values"][name]
            elif name in graph["sym_int_values"]:
                self._sizes[name] = graph["sym_int_values"][name]

    def _add(self, node: dict[str, Any], result: str, meta: Mapping[str, Any]) -> None:
        self._nodes.append(node)
        self._tensors[result] = meta

    def _weight_specs(self) -> list[Any]:
        specs = self._program.signature["input_specs"]
        return [s for s in specs if _arg_name(s) in self._cut.weights]

    def _program_document(self, arguments: list[str], outputs: Mapping[str, str], specs: list[Any]) -> dict[str, Any]:
        given = [tensor_argument(self._names.get(value, value)) for value in outputs.values()]
        whole = self._program.document["program"]
        kept = {key: whole["graph_module"]["graph"][key] for key in ("sym_bool_values", "sym_float_values")}
        graph = {
            **whole["graph_module"]["graph"],
            **{key: {n: v for n, v in values.items() if self._produces(n)} for key, values in kept.items()},
            "inputs": [tensor_argument(name) for name in arguments],
            "outputs": given,
            "nodes": self._nodes,
            "tensor_values": self._tensors,
            "sym_int_values": self._sizes,
        }
        user_inputs = arguments[len(specs) - sum("user_input" in s for s in specs) :]
        module = {
            **whole["graph_module"],
            "graph": graph,
            "signature": {"input_specs": specs, "output_specs": [{"user_output": {"arg": item}} for item in given]},
            "module_call_graph": [{"fqn": "", "signature": _call(user_inputs, list(outputs))}],
        }
        used = json.dumps([self._tensors, self._sizes])
        ranges = {symbol: limits for symbol, limits in whole["range_constraints"].items() if f"'{symbol}'" in used}
        return {**whole, "graph_module": module, "range_constraints": ranges}

    def _produces(self, name: str) -> bool:
        producer = self._program.producer.get(name)
        return producer is not None and producer.index in self._cut.operations


def _names(item: Mapping[str, Any]) -> Iterable[str]:
    for form in item.values():
        for entry in form if isinstance(form, list) else [form]:
            yield str(entry.get("name") or entry.get("as_name"))


def _arg_name(spec: Mapping[str, Any]) -> str | None:
    form = next(iter(spec.values()))
    name = form.get("arg", {}).get("name")
    return None if name is None else str(name)


def _call(inputs: list[str], outputs: list[str]) -> dict[str, Any]:
    def mapping(names: list[str]) -> dict[str, Any]:
        return {"type": "builtins.dict", "context": json.dumps(names), "children_spec": [_LEAF] * len(names)}

    empty = {"type": "builtins.tuple", "context": "null", "children_spec": []}
    arguments = {"type": "builtins.tuple", "context": "null", "children_spec": [empty, mapping(inputs)]}
    return {
        "forward_arg_names": inputs,
        "in_spec": json.dumps([1, arguments]),
        "inputs": [],
        "out_spec": json.dumps([1, mapping(outputs)]),
        "outputs": [],
    }


def _specs(metas: Mapping[str, Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    return tuple(_spec(name, meta) for name, meta in metas.items())


def _spec(name: str, meta: Mapping[str, Any]) -> TensorSpec:
    if meta["dtype"] not in _DATATYPES:
        msg = (
            f"parts: the cut would send {name!r}, whose element type no V2 datatype has; keep what uses it in one part"
        )
        raise InvalidInput(msg, field="parts", value=name, allowed=tuple(_DATATYPES.values()))
    sizes = [dimension(item) for item in meta["sizes"]]
    return TensorSpec(
        name=name, datatype=_DATATYPES[meta["dtype"]], shape=tuple(-1 if s.text else s.hint for s in sizes)
    )
