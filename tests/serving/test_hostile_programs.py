"""A snapshot is data: whatever stands in its files, loading it opens no other file, imports nothing and runs no text of it."""

import sys

import numpy as np
import pytest
import torch
from typer.testing import CliRunner

from ipnext.artifacts.sources import DirectorySource
from ipnext.cli.app import app
from ipnext.client_upload import checked_snapshot
from ipnext.errors import InvalidInput, LoadFailed
from serving.engines.torch_ranker import TorchEngine
from tests.serving import hostile
from tests.serving.hostile import SIZE, edit, export_copying

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


def _trains(document):
    node = hostile.node_of(document, "batch_norm")
    for item in node["inputs"]:
        if item["name"] == "training":
            item["arg"] = {"as_bool": True}


def test_a_normalisation_writes_to_no_statistics(tmp_path):
    """The schema of batch_norm says that it writes nothing, which holds in evaluation only."""
    manifest = hostile.export_model(torch.nn.BatchNorm1d(4), {"input": torch.ones(2, 4)}, tmp_path / "out")
    TorchEngine().load(tmp_path / "out", manifest, {})
    assert "as in training" in refusal_of(tmp_path / "out", edit(tmp_path / "out", _trains))


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
        checked_snapshot(DirectorySource(directory, roots=(tmp_path,)))
