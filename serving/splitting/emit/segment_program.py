"""The program document and the signature of one segment."""

import json
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from ipnext.model.registry.registry import Signature
from serving.splitting.emit.boundary_ops import Made, arrival, departure
from serving.splitting.emit.extract import Cut, CutProgram
from serving.splitting.emit.packing import takes_any_strides
from serving.splitting.ir.nodes import batch_size, product, rename_values, tensor_argument
from serving.splitting.ir.program import Operation
from serving.splitting.ir.symbolic_shapes import dimension
from serving.splitting.ir.tensor_specs import tensor_specs


class SegmentDocument:
    """Writes the document of a segment. Values keep their names, except those from other segments."""

    def __init__(self, whole: CutProgram, cut: Cut) -> None:
        self._whole = whole
        self._program = whole.program
        self._cut = cut
        self._nodes: list[Mapping[str, Any]] = []
        self._tensors: dict[str, Any] = {}
        self._sizes: dict[str, Any] = {}
        self._names: dict[str, str] = {}
        self._slices: dict[str, str] = {}
        """Names for operations that accept any strides."""

    def document(self) -> dict[str, Any]:
        """Return the document in the form of `program.json`."""
        cut, program = self._cut, self._program
        inputs = self._whole.sources(cut)
        self._receive()
        self._read_sizes(inputs)
        for operation in self._operations():
            self._keep(operation)
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
        """Return the segment's input and output tensors."""
        program, whole = self._program, self._whole
        asked = {name: program.graph["tensor_values"][name] for name in program.inputs if name in self._cut.requests}
        taken = {parcel.name: parcel.meta for parcel in map(whole.parcels.__getitem__, self._cut.edges)}
        given = {parcel.name: parcel.meta for parcel in whole.list_sent(self._cut)}
        answers = {name: program.graph["tensor_values"][value] for name, value in self._cut.answers.items()}
        return Signature(inputs=tensor_specs(asked | taken), outputs=tensor_specs(given | answers))

    def _receive(self) -> None:
        whole = self._whole
        for value in self._cut.edges:
            parcel = whole.parcels[value]
            self._tensors[parcel.name] = parcel.meta
            got = arrival(parcel, value, whole.names[value], whole.wires[value], exact=self._is_used_exactly(value))
            self._add(got.made)
            self._names[value], self._slices[value] = got.name, got.slice

    def _is_used_exactly(self, value: str) -> bool:
        users = (operation for operation in self._operations() if value in operation.inputs)
        return not all(self._takes_any_strides(operation) for operation in users)

    def _takes_any_strides(self, operation: Operation) -> bool:
        cut = self._cut
        return takes_any_strides(operation, tuple(self._operations()), given={*cut.sends, *cut.answers.values()})

    def _operations(self) -> Iterator[Operation]:
        return (self._program.operations[index] for index in sorted(self._cut.operations))

    def _send(self) -> dict[str, str]:
        """Return output name -> value."""
        whole, found = self._whole, {}
        for parcel in whole.list_sent(self._cut):
            made = departure(parcel, whole.names, self._names, whole.wires)
            self._add(made)
            first = parcel.values[0]
            found[parcel.name] = made[-1].name if made else self._names.get(first, first)
        return found

    def _read_sizes(self, inputs: Iterable[str]) -> None:
        """Read sizes that depend on the batch from an input, so that no tensor is sent for its size alone."""
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

    def _keep(self, operation: Operation) -> None:
        names = self._names
        if not self._slices.keys().isdisjoint(operation.inputs) and self._takes_any_strides(operation):
            names = names | self._slices
        raw = operation.raw
        self._nodes.append({**raw, "inputs": [{**i, "arg": rename_values(i["arg"], names)} for i in raw["inputs"]]})
        self._describe(name for item in raw["outputs"] for name in _names(item))

    def _describe(self, names: Iterable[str]) -> None:
        graph = self._program.graph
        for name in names:
            if name in graph["tensor_values"]:
                self._tensors[name] = graph["tensor_values"][name]
            elif name in graph["sym_int_values"]:
                self._sizes[name] = graph["sym_int_values"][name]

    def _add(self, made: Iterable[Made]) -> None:
        for one in made:
            self._nodes.append(one.node)
            self._tensors[one.name] = one.meta

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
        module = {
            **whole["graph_module"],
            "graph": graph,
            "signature": {"input_specs": specs, "output_specs": [{"user_output": {"arg": item}} for item in given]},
            "module_call_graph": [],
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
