"""A snapshot is data.

Whatever stands in its files, loading it opens no other file, imports nothing and runs no text of it.
"""

import json
import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ipnext.artifacts.sources import DirectorySource
from ipnext.cli.app import app
from ipnext.client.upload import verify_snapshot
from ipnext.errors import InvalidInput, IPnextError, LoadFailed
from serving.engines.torch.engine import TorchEngine
from tests.serving import hostile
from tests.serving.hostile import SIZE, edit, export_copying

pytestmark = pytest.mark.trust

SECRET = b"aws_secret_access_key=0123456789"
PROOF = "open({path!r}, 'w').close()"


@pytest.fixture
def directory(tmp_path):
    export_copying(tmp_path / "snapshot")
    return tmp_path / "snapshot"


def load(directory, manifest):
    """As a host: load, warm up, answer."""
    part = TorchEngine().load(directory, manifest, {})
    part.warm_up()
    return part.infer({"x": np.zeros((1, SIZE), np.uint8)})


def refusal_of(directory, manifest):
    with pytest.raises(LoadFailed) as refusal:
        load(directory, manifest)
    return refusal.value.message


def test_no_file_is_read(directory, tmp_path):
    secret = tmp_path / "secret"
    secret.write_bytes(SECRET.ljust(SIZE))
    message = refusal_of(directory, edit(directory, hostile.reads_file(secret)))
    assert "(node 'zeros').target: the operator 'torch.ops.aten.from_file.default' is not allowed" in message
    assert "allowed are the deterministic, functional ATen operations" in message


def test_no_file_is_written(directory, tmp_path):
    target = tmp_path / "profile"
    target.write_bytes(b"#" * SIZE)
    refusal_of(directory, edit(directory, hostile.writes_file(target)))
    assert target.read_bytes() == b"#" * SIZE


def test_nothing_is_written_in_place(directory):
    message = refusal_of(directory, edit(directory, hostile.writes_in_place))
    assert "(node 'copy').target: the operator 'torch.ops.aten.copy_.default' is not allowed" in message


def test_no_module_is_imported(directory, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "innocent_by_specification.py").write_text(PROOF.format(path=str(tmp_path / "proof")))
    refusal_of(directory, edit(directory, hostile.imports("innocent_by_specification")))
    assert not (tmp_path / "proof").exists()
    assert "innocent_by_specification" not in sys.modules


def test_two_snapshots_do_together_what_neither_may(tmp_path, monkeypatch):
    """One writes a module into a directory of the interpreter's path, the other has it imported."""
    monkeypatch.syspath_prepend(tmp_path)
    module = tmp_path / "innocent_of_both.py"
    payload = b"import os;os.mkdir('proof')"
    monkeypatch.chdir(tmp_path)
    export_copying(tmp_path / "one", payload)
    export_copying(tmp_path / "two")
    refusal_of(tmp_path / "one", edit(tmp_path / "one", hostile.writes_file(module)))
    refusal_of(tmp_path / "two", edit(tmp_path / "two", hostile.imports("innocent_of_both")))
    assert not module.exists()
    assert not (tmp_path / "proof").exists()


@pytest.mark.parametrize("name", ["x = {code}", "x=({code})", "x, y={code}", "x):\n {code}\ndef g("])
def test_no_name_of_a_value_becomes_source(directory, tmp_path, name):
    """torch writes names of inputs into a function that it executes, defaults of arguments included."""
    hostile_name = name.format(code=PROOF.format(path=str(tmp_path / "proof")))
    message = refusal_of(directory, edit(directory, hostile.renames("x", hostile_name)))
    assert not (tmp_path / "proof").exists()
    assert "must be a name (an identifier)" in message


@pytest.mark.parametrize("name", ["class", "__import__", "a b", "", "x" * 2000])
def test_names_are_identifiers(directory, name):
    assert "must be a name" in refusal_of(directory, edit(directory, hostile.renames("x", name)))


def _each_expression(text):
    def change(document):
        sizes = hostile.graph_of(document)["tensor_values"]["x"]["sizes"]
        sizes[0]["as_expr"]["expr_str"] = text

    return change


SUM = "Add(" + ", ".join(f"Symbol('s{number}')" for number in range(8)) + ")"
"""Its powers have thousands of terms when they are multiplied out."""


@pytest.mark.parametrize(
    "text",
    [
        "__import__('os').mkdir('proof')",
        "Symbol('s0', positive=__import__('os').mkdir('proof'))",
        "Symbol('s0').__class__",
        "(lambda: 0)()",
        "Integer(1) if 1 else 2",
        "Symbol('__class__')",
        'Symbol("s0")',
        "Symbol('s0', commutative=False)",
        "Lambda(Symbol('s0'), Integer(1))",
        "Integer(9223372036854775808)",
        "Integer(1e9)",
        "Pow(Integer(10), Integer(1000000000))",
        "Pow(Pow(Pow(Pow(Pow(Integer(9), Integer(8)), Integer(8)), Integer(8)), Integer(8)), Integer(8))",
        f"FloorDiv(Pow(Pow({SUM}, Integer(8)), Integer(8)), {SUM})",
        f"Mod(Mul({SUM}, {SUM}, {SUM}), Integer(2))",
        "Pow(Pow(Pow(Symbol('s0'), Integer(8)), Integer(8)), Integer(8))",
        "Add(" * 30 + "Integer(1)" + ")" * 30,
        "Max(" + "Integer(1), " * 200 + "Integer(2))",
        "Mul(Integer(2)",
        "Integer(1) Integer(2)",
        "",
        7,
        None,
        ["Integer(1)"],
    ],
)
def test_no_expression_is_evaluated(directory, tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    message = refusal_of(directory, edit(directory, _each_expression(text)))
    assert not (tmp_path / "proof").exists()
    assert "is not allowed" in message


def _add(*path):
    def change(document):
        place = document
        for step in path[:-1]:
            place = place[step]
        place[path[-1]] = "anything"

    return change


PROGRAM = ("program",)
MODULE = (*PROGRAM, "graph_module")
GRAPH = (*MODULE, "graph")


@pytest.mark.parametrize("path", [(), PROGRAM, MODULE, GRAPH, (*GRAPH, "nodes", 0), (*MODULE, "signature")])
def test_a_field_that_the_exporter_does_not_write_is_refused(directory, path):
    message = refusal_of(directory, edit(directory, _add(*path, "more")))
    assert "the field 'more' is unknown" in message


def _argument(name, value):
    def change(document):
        hostile.node_of(document, "zeros")["inputs"][0] = {"name": name, "arg": value, "kind": 1}

    return change


@pytest.mark.parametrize(
    "value",
    [
        {"as_string": "/etc/passwd"},
        {"as_strings": ["a"]},
        {"as_operator": "_operator.attrgetter"},
        {"as_graph": {"name": "g", "graph": {}}},
        {"as_custom_obj": {"name": "x", "class_fqn": "os.system"}},
        {"as_string_to_argument": {"a": {"as_int": 1}}},
        {"as_device": {"type": "cuda", "index": None}},
        {"as_int": 2**63},
        {"as_int": True},
        {"as_int": 1, "as_bool": True},
        "text",
    ],
)
def test_arguments_are_plain_data(directory, value):
    message = refusal_of(directory, edit(directory, _argument("size", value)))
    assert "graph.nodes[0] (node 'zeros').inputs[0].arg" in message


@pytest.mark.parametrize("text", ["x", 'floor"); system("true', ""])
def test_words_are_of_their_parameters_list(directory, text):
    message = refusal_of(directory, edit(directory, _argument("rounding_mode", {"as_string": text})))
    assert "allowed: floor, trunc" in message


@pytest.mark.parametrize("path", ["__class__.x", "a..b", 'a", exec) or getattr(self, "b', "a\\b"])
def test_paths_of_weights_are_plain(directory, path):
    message = refusal_of(directory, edit(directory, hostile.renames("payload", path)))
    assert "must be a path of plain names" in message


def _gives(operator, name, value):
    def change(document):
        [item] = [item for item in hostile.node_of(document, operator)["inputs"] if item["name"] == name]
        item["arg"] = value

    return change


@pytest.mark.parametrize(
    "value",
    [
        {"as_bool": True},
        {"as_sym_bool": {"as_bool": True}},
        {"as_int": 1},
        {"as_sym_int": {"as_int": 1}},
        {"as_float": 1.0},
        {"as_tensor": {"name": "input"}},
    ],
)
def test_a_normalisation_writes_to_no_statistics(tmp_path, value):
    """The schema of batch_norm says that it writes nothing, which holds in evaluation only.

    torch takes numbers for truth.
    """
    manifest = hostile.export_model(torch.nn.BatchNorm1d(4), {"input": torch.ones(2, 4)}, tmp_path / "out")
    TorchEngine().load(tmp_path / "out", manifest, {})
    message = refusal_of(tmp_path / "out", edit(tmp_path / "out", _gives("batch_norm", "training", value)))
    assert "as in training" in message


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("memory_format", {"as_int": 4}),
        ("dtype", {"as_int": 255}),
        ("layout", {"as_sym_int": {"as_int": 1}}),
        ("device", {"as_int": 0}),
        ("interpolation_mode", {"as_int": 99}),
        ("padding_mode", {"as_sym_int": {"as_int": 1}}),
    ],
)
def test_choices_are_no_other_numbers(directory, name, value):
    """torch takes any number for them: kernels crash, or answer with memory that nothing was written to."""
    message = refusal_of(directory, edit(directory, _argument(name, value)))
    assert f"for {name!r}" in message


class Normed(torch.nn.Module):
    """A row of 4,000 numbers scaled by weights of one norm, with a tensor of one number at hand."""

    def __init__(self):
        super().__init__()
        self.v = torch.nn.Parameter(torch.ones(4000, 2))
        self.g = torch.nn.Parameter(torch.ones(4000, 1))
        self.register_buffer("small", torch.ones(1))

    def forward(self, x):
        return x + torch.ops.aten._weight_norm.default(self.v, self.g, 0).sum() + self.small


class Recurrent(torch.nn.Module):
    """An LSTM over rows, with a tensor of one number at hand."""

    def __init__(self):
        super().__init__()
        self.lstm = torch.nn.LSTM(4, 300, batch_first=True)
        self.register_buffer("small", torch.ones(1))

    def forward(self, x):
        return self.lstm(x)[0] + self.small


def _swaps_weight(old, new):
    def change(document):
        for node in hostile.graph_of(document)["nodes"]:
            text = json.dumps(node["inputs"])
            node["inputs"] = (
                json.loads(text.replace(f'"{old}"', f'"{new}"')) if ".add." not in node["target"] else node["inputs"]
            )

    return change


@pytest.mark.parametrize(
    ("module", "x", "old"),
    [
        (Normed(), torch.ones(2, 4), "p_g"),
        (Recurrent(), torch.ones(2, 3, 4), "p_lstm_weight_hh_l0"),
        (Recurrent(), torch.ones(2, 3, 4), "p_lstm_bias_ih_l0"),
    ],
)
def test_no_kernel_reads_or_writes_beside_its_tensors(tmp_path, module, x, old):
    """Kernels of these operators do, if a weight is smaller than its input says.

    Without a check this ends the process.
    """
    manifest = hostile.export_model(module, {"x": x}, tmp_path / "out")
    load_as_given(tmp_path / "out", manifest, x)
    mended = edit(tmp_path / "out", _swaps_weight(old, "b_small"))
    with pytest.raises(IPnextError, match="do not go with its input"):
        load_as_given(tmp_path / "out", mended, x)


def load_as_given(directory, manifest, x):
    part = TorchEngine().load(directory, manifest, {})
    part.warm_up()
    return part.infer({"x": x.numpy()})


class Sized(torch.nn.Module):
    """Computes a size."""

    def forward(self, x):
        return x.reshape(x.shape[0] * x.shape[1], -1)


def _squares(times):
    """Multiply a size with itself, again and again, before all else."""

    def change(document):
        graph = hostile.graph_of(document)
        [(_, known), *_] = graph["sym_int_values"].items()
        given = {"as_sym_int": {"as_int": 2**62}}
        squares = []
        for number in range(times):
            name = f"square_{number}"
            inputs = [{"name": side, "arg": given, "kind": 1} for side in ("a", "b")]
            given = {"as_sym_int": {"as_name": name}}
            node = {"target": "_operator.mul", "inputs": inputs, "outputs": [given], "metadata": {}, "name": name}
            squares.append(node)
            graph["sym_int_values"][name] = known
        graph["nodes"] = [*squares, *graph["nodes"]]

    return change


@pytest.mark.parametrize("times", [4, 30])
def test_no_size_grows_without_end(tmp_path, times):
    """Thirty squares of a number take gigabytes, and the whole host stands still meanwhile."""
    manifest = hostile.export_model(Sized(), {"x": torch.zeros(2, 4)}, tmp_path / "out")
    load_as_given(tmp_path / "out", manifest, torch.zeros(2, 4))
    mended = edit(tmp_path / "out", _squares(times))
    if times == 4:
        load_as_given(tmp_path / "out", mended, torch.zeros(2, 4))
    else:
        message = refusal_of(tmp_path / "out", mended)
        assert (
            "(node 'square_6'): the size that _operator.mul computes may take 8192 bits; allowed: at most 4096"
            in message
        )


def test_deeply_nested_json_is_refused(directory):
    assert "is not JSON" in refusal_of(directory, hostile.rewrite(directory, "[" * 100_000))


@pytest.mark.usefixtures("subprocesses")  # a compiler is looked for
@pytest.mark.parametrize("command", ["split", "compile", "delta"])
def test_no_command_reads_a_hostile_program(directory, tmp_path, command):
    """The platform runs `ipnext split` on what was published."""
    edit(directory, hostile.writes_file(tmp_path / "made"))
    policy = tmp_path / "policy.yaml"
    policy.write_text("parts: [{name: one, modules: ['*']}]\ndefault: rest\n")
    words = {
        "split": ["split", str(directory), "--policy", str(policy), "--verify"],
        "compile": ["compile", str(directory), "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")],
        "delta": ["delta", str(directory), str(directory), "--out", str(tmp_path / "out")],
    }
    found = CliRunner().invoke(app, words[command])
    assert found.exit_code != 0
    assert "torch.ops.aten.from_file.default" in found.output
    assert not (tmp_path / "made").exists()


def test_the_client_uploads_no_hostile_program(directory, tmp_path):
    edit(directory, hostile.writes_file(tmp_path / "made"))
    with pytest.raises(InvalidInput, match=r"torch\.ops\.aten\.from_file\.default"):
        verify_snapshot(DirectorySource(directory, roots=(tmp_path,)))
