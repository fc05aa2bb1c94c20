"""Snapshots made hostile: an export whose `program.json` was edited and whose digests were mended."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ipnext.model.registry.registry import SNAPSHOT_FILE, SnapshotManifest
from ipnext.model.value import canonical_json
from serving.export import export_model
from serving.snapshots.directory import artifact_file

PROGRAM = "program.json"
SIZE = 64
"""Bytes of the stored payload."""


class Copying(nn.Module):
    """x -> x plus the payload, by operators that are turned into others."""

    def __init__(self, payload: bytes) -> None:
        super().__init__()
        self.register_buffer("payload", torch.tensor(list(payload.ljust(SIZE, b"\n")), dtype=torch.uint8))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x + torch.ops.aten.copy.default(torch.zeros(SIZE, dtype=torch.uint8), self.payload)


def export_copying(directory: Path, payload: bytes = b"payload") -> SnapshotManifest:
    return export_model(Copying(payload), {"x": torch.zeros(2, SIZE, dtype=torch.uint8)}, directory)


def edit(directory: Path, change: Callable[[dict[str, Any]], None]) -> SnapshotManifest:
    """Change the program of a snapshot and mend its manifest."""
    document = json.loads((directory / PROGRAM).read_bytes())
    change(document)
    return rewrite(directory, json.dumps(document))


def rewrite(directory: Path, text: str) -> SnapshotManifest:
    (directory / PROGRAM).write_text(text)
    manifest = SnapshotManifest.model_validate_json((directory / SNAPSHOT_FILE).read_bytes())
    files = tuple(artifact_file(directory / file.path) for file in manifest.files)
    mended = manifest.model_copy(update={"files": files})
    (directory / SNAPSHOT_FILE).write_text(canonical_json(mended))
    return mended


def graph_of(document: dict[str, Any]) -> dict[str, Any]:
    return document["program"]["graph_module"]["graph"]


def node_of(document: dict[str, Any], operator: str) -> dict[str, Any]:
    return next(node for node in graph_of(document)["nodes"] if f".{operator}." in node["target"])


def maps_file(path: Path, *, shared: bool) -> Callable[[dict[str, Any]], None]:
    """In place of zeros, the bytes of a file."""

    def change(document: dict[str, Any]) -> None:
        node = node_of(document, "zeros")
        node["target"] = "torch.ops.aten.from_file.default"
        node["inputs"] = [
            {"name": "filename", "arg": {"as_string": str(path)}, "kind": 1},
            {"name": "shared", "arg": {"as_bool": shared}, "kind": 1},
            {"name": "size", "arg": {"as_int": SIZE}, "kind": 1},
            {"name": "dtype", "arg": {"as_scalar_type": 1}, "kind": 2},
        ]

    return change


def reads_file(path: Path) -> Callable[[dict[str, Any]], None]:
    """The answer carries the bytes of a file: the payload is added to it and taken as nothing."""

    def change(document: dict[str, Any]) -> None:
        maps_file(path, shared=False)(document)
        node = node_of(document, "copy")
        node["target"] = "torch.ops.aten.add.Tensor"
        node["inputs"] = [{**item, "name": name} for item, name in zip(node["inputs"], ("self", "other"), strict=True)]

    return change


def writes_file(path: Path) -> Callable[[dict[str, Any]], None]:
    """The payload goes into a file, which is made if it does not exist."""

    def change(document: dict[str, Any]) -> None:
        maps_file(path, shared=True)(document)
        writes_in_place(document)

    return change


def writes_in_place(document: dict[str, Any]) -> None:
    node = node_of(document, "copy")
    node["target"] = "torch.ops.aten.copy_.default"


def imports(module: str) -> Callable[[dict[str, Any]], None]:
    """A tree specification whose context names an enumeration of a module."""

    def change(document: dict[str, Any]) -> None:
        leaf = {"type": None, "context": None, "children_spec": []}
        enum = json.dumps({"__enum__": True, "fqn": f"{module}:E", "name": "x"})
        spec = json.dumps([1, {"type": "builtins.tuple", "context": enum, "children_spec": [leaf]}])
        entry = {"inputs": [], "outputs": [], "in_spec": spec, "out_spec": spec, "forward_arg_names": ["x"]}
        document["program"]["graph_module"]["module_call_graph"] = [{"fqn": "", "signature": entry}]

    return change


def renames(old: str, new: str) -> Callable[[dict[str, Any]], None]:
    """A value of the program under another name, everywhere."""

    def renamed(value: Any) -> Any:
        if isinstance(value, dict):
            return {new if key == old else key: renamed(item) for key, item in value.items()}
        if isinstance(value, list):
            return [renamed(item) for item in value]
        return new if value == old else value

    def change(document: dict[str, Any]) -> None:
        document.update(renamed(document))

    return change
