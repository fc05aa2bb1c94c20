"""Random changes of real programs.

The answers are the same, or the load is refused, and no other file or module is touched.
"""

import json
import shutil
import sys
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from torch import nn

from ipnext.errors import IPnextError, LoadFailed
from ipnext.model.registry.registry import SnapshotManifest
from serving.engines.torch.engine import TorchEngine
from serving.engines.torch.program import read_program
from serving.export import export_model
from tests.serving.hostile import PROGRAM, renames, rewrite

pytestmark = pytest.mark.trust

MODULE = "ipnext_hostile_module"
"""It does not exist; a hostile value asks for it."""
_CONTEXT = json.dumps({"__enum__": True, "fqn": f"{MODULE}:E", "name": "x"})
SPECIFICATION = json.dumps([1, {"type": "builtins.tuple", "context": _CONTEXT, "children_spec": []}])

HOSTILE = [
    *("torch.ops.aten.from_file.default", "torch.ops.aten.copy_.default", "torch.ops.aten.set_.source_Storage"),
    *(
        "torch.hub.load",
        "torch.load",
        "_operator.attrgetter",
        "_operator.methodcaller",
        "_operator.call",
        "math.nothing",
    ),
    *("torch.ops.higher_order.cond", "torch.ops.aten.empty.memory_format", "#extension:thing", "builtins.eval"),
    *(f"__import__('{MODULE}')", f"x=__import__('{MODULE}')", f"Symbol('s0', positive=__import__('{MODULE}'))"),
    *("Symbol.__class__", "Integer(1).__class__", f"{MODULE}:E", "os.system", "/etc/passwd", "../../etc/passwd"),
    *(f'", __import__("{MODULE}"), "', "__class__", "__builtins__.eval", "class", "", "\0", "a\nb", SPECIFICATION),
    {"as_string": "/etc/passwd"},
    {"as_operator": "_operator.attrgetter"},
    {"as_custom_obj": {"name": "x", "class_fqn": f"{MODULE}.E"}},
    {"as_graph": {"name": "g", "graph": {}}},
    {"as_expr": {"expr_str": f"__import__('{MODULE}')", "hint": None}},
    {"fqn": "", "signature": {"inputs": [], "outputs": [], "in_spec": SPECIFICATION, "out_spec": SPECIFICATION}},
    *(None, True, -1, 2**63, 2**200, 1e308, [], {}, [SPECIFICATION], {"more": SPECIFICATION}),
]
FIELDS = ["more", "guards_code", "in_spec", "expr_str", "custom_obj_values", "metadata", "treespec_namedtuple_fields"]


class Tower(nn.Module):
    """A bit of all: a table, layers, a constant, sizes, a buffer, two outputs."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(10, 4)
        self.layers = nn.Sequential(nn.Linear(8, 4), nn.BatchNorm1d(4), nn.GELU(), nn.Linear(4, 1))
        self.register_buffer("shift", torch.ones(4))

    def forward(self, ids: torch.Tensor, x: torch.Tensor) -> dict[str, torch.Tensor]:
        both = torch.cat([self.table(ids) + self.shift, x], 1)
        pairs = both.reshape(both.shape[0] * 2, -1) * torch.tensor([1.0, 2.0, 3.0, 4.0])
        return {
            "score": self.layers(both).squeeze(1),
            "pairs": torch.div(pairs, 2, rounding_mode="floor").reshape(-1, 8),
        }


REQUEST = {"ids": np.arange(3), "x": np.linspace(0, 1, 12, dtype=np.float32).reshape(3, 4)}


@pytest.fixture(scope="module")
def source(tmp_path_factory) -> Path:
    directory = tmp_path_factory.mktemp("mutated") / "source"
    export_model(Tower(), {name: torch.from_numpy(value) for name, value in REQUEST.items()}, directory)
    return directory


@pytest.fixture(scope="module")
def expected(source) -> dict[str, np.ndarray]:
    return answer_of(source, SnapshotManifest.model_validate_json((source / "snapshot.json").read_bytes()))


class Watch:
    """Fails what the interpreter does for a program beyond reading the snapshot and its own modules."""

    def __init__(self) -> None:
        self.allowed: Path | None = None
        self.faults: list[str] = []
        sys.addaudithook(self)

    def __call__(self, event: str, arguments: tuple) -> None:
        if self.allowed is None:
            return
        match event:
            case "open" if isinstance(arguments[0], str | bytes | Path):
                path = str(arguments[0])
                if not path.startswith(str(self.allowed)) and not path.endswith((".py", ".pyc")):
                    self.faults.append(f"open {path}")
            case "import" if MODULE in str(arguments[0]):
                self.faults.append(f"import {arguments[0]}")
            case "compile" if MODULE in str(arguments[0]):
                self.faults.append(f"compile {arguments[0]!r:.200}")
            case (
                "os.system"
                | "subprocess.Popen"
                | "os.exec"
                | "os.posix_spawn"
                | "os.remove"
                | "os.mkdir"
                | "socket.connect"
            ):
                self.faults.append(f"{event} {arguments}")

    @contextmanager
    def over(self, directory: Path):
        self.allowed, self.faults = directory, []
        try:
            yield
        finally:
            self.allowed = None


@pytest.fixture(scope="module")
def watch() -> Watch:
    return Watch()


def answer_of(directory: Path, manifest: SnapshotManifest) -> dict[str, np.ndarray]:
    part = TorchEngine().load(directory, manifest, {})
    part.warm_up()
    return part.infer({name: value.copy() for name, value in REQUEST.items()})


def places(value, path=()):
    yield path
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in items:
        yield from places(item, (*path, key))


def changed(document, path, kind, value, field):
    document = json.loads(json.dumps(document))
    place = document
    for step in path[:-1]:
        place = place[step]
    key = path[-1]
    if kind == "add" and isinstance(place[key], dict):
        place[key][field] = value
    elif kind == "add" and isinstance(place[key], list):
        place[key].append(value)
    elif kind == "rename" and isinstance(place, dict):
        place[str(value)] = place.pop(key)
    elif kind == "remove":
        del place[key]
    else:
        place[key] = value
    return document


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    where=st.floats(0, 1, exclude_max=True),
    kind=st.sampled_from(["replace", "replace", "replace", "add", "rename", "remove"]),
    value=st.sampled_from(HOSTILE),
    field=st.sampled_from(FIELDS),
)
@example(where=0.0, kind="replace", value="", field="more")
def test_a_mutated_program_answers_as_before_or_is_refused(
    source, expected, watch, tmp_path, where, kind, value, field
):
    document = json.loads((source / PROGRAM).read_bytes())
    found = [path for path in places(document) if path]
    path = found[int(where * len(found))]
    directory = tmp_path / "mutated"
    shutil.rmtree(directory, ignore_errors=True)
    shutil.copytree(source, directory)
    manifest = rewrite(directory, json.dumps(changed(document, path, kind, value, field)))

    with watch.over(directory):
        try:
            got = answer_of(directory, manifest)
        except IPnextError:
            got = None

    assert watch.faults == []
    assert MODULE not in sys.modules
    if got is not None:
        assert got.keys() == expected.keys()
        assert all(np.array_equal(got[name], expected[name]) for name in expected)


def each_place(document):
    """One path of each kind: numbers of lists and names of values aside."""
    kinds = {}
    for path in places(document):
        if path:
            steps = zip(("", *path), path, strict=False)
            kind = tuple("*" if isinstance(step, int) or outer in NAMED else step for outer, step in steps)
            kinds.setdefault(kind, path)
    return kinds.values()


NAMED = {"tensors", "tensor_values", "sym_int_values", "range_constraints"}
"""Objects whose fields are names of values."""


def replaced(document, path, value):
    """The text of the document with another value at this place."""
    place = document
    for step in path[:-1]:
        place = place[step]
    before = place[path[-1]]
    place[path[-1]] = value
    text = json.dumps(document)
    place[path[-1]] = before
    return text


def test_no_place_of_a_program_takes_a_hostile_value(source, expected, watch, tmp_path):
    """A third of the values at each kind of place, in turns, and each text as the name of an input."""
    directory = tmp_path / "mutated"
    shutil.copytree(source, directory)
    document = json.loads((source / PROGRAM).read_bytes())
    texts = [value for value in HOSTILE if isinstance(value, str)]
    cases = [
        (path, value, replaced(document, path, value))
        for number, path in enumerate(each_place(document))
        for value in (SPECIFICATION, *HOSTILE[number % 3 :: 3])
    ]
    for text in texts:
        renamed = json.loads(json.dumps(document))
        renames("x", text)(renamed)
        cases.append((("the name of an input",), text, json.dumps(renamed)))
    assert len(cases) > 500
    for path, value, mutated in cases:
        (directory / PROGRAM).write_text(mutated)
        with watch.over(directory):
            try:
                program = read_program(directory)
            except LoadFailed:
                program = None
        assert watch.faults == [], (path, value)
        if program is not None and set(program.inputs) == REQUEST.keys():
            with torch.inference_mode():
                got = program.run([torch.from_numpy(REQUEST[name].copy()) for name in program.inputs])
            assert all(np.array_equal(a, b) for a, b in zip(got, expected.values(), strict=True)), (path, value)
    assert MODULE not in sys.modules


def test_the_watch_sees_what_a_program_could_do(watch, tmp_path):
    with watch.over(tmp_path):
        (tmp_path / "inside").write_text("")
        assert watch.faults == []
        with pytest.raises(FileNotFoundError):
            (tmp_path.parent / "outside").open()
        with pytest.raises(ImportError):
            exec(f"import {MODULE}")
    assert [fault.partition(" ")[0] for fault in watch.faults] == ["open", "compile", "import"]
