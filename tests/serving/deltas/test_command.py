"""`ipnext delta` from outside: what it prints and writes, and what it refuses."""

import json

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from ipnext.errors import InvalidInput
from ipnext.model.registry.registry import SnapshotManifest
from serving.deltas.command import app
from serving.export import export_model


class Table(nn.Module):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.table = nn.Embedding(3000, 8)

    def forward(self, ids):
        return self.table(ids)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = tmp_path_factory.mktemp("delta")
    table = Table().requires_grad_(requires_grad=False)
    example = {"ids": torch.zeros(2, dtype=torch.int64)}
    export_model(table, example, root / "one")
    table.table.weight[5:8] += 1
    export_model(table, example, root / "two")
    table.table.weight[7:9] += 1
    export_model(table, example, root / "three")
    export_model(nn.Sequential(nn.Linear(2, 1)), {"input": torch.zeros(2, 2)}, root / "other")
    return root


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def test_the_table_says_what_changed_and_what_it_costs(place, tmp_path):
    result = run(place / "one", place / "two", "--out", tmp_path / "delta")
    assert result.exit_code == 0, result.exception
    assert "state:table.weight  3     3,000" in result.stdout
    assert "3 rows, " in result.stdout
    assert "of the full snapshot's" in result.stdout


def test_json_has_the_figures_and_the_digest_of_what_was_written(place, tmp_path):
    answer = json.loads(run(place / "one", place / "two", "--out", tmp_path / "delta", "-o", "json").stdout)
    manifest = SnapshotManifest.model_validate_json((tmp_path / "delta" / "snapshot.json").read_bytes())
    assert (answer["digest"], answer["parent"]) == (manifest.digest, manifest.parent)
    assert answer["rows"] == 3
    assert answer["bytes"] == sum(p.stat().st_size for p in (tmp_path / "delta").glob("delta.*"))


def test_apply_gives_the_weights_of_the_new_snapshot_through_a_chain(place, tmp_path):
    run(place / "one", place / "two", "--out", tmp_path / "first")
    second = run(tmp_path / "first", place / "three", "--base", place / "one", "--out", tmp_path / "second")
    assert second.exit_code == 0, second.exception
    arguments = ("--base", place / "one", "--apply", "--out", tmp_path / "full")
    result = run(tmp_path / "first", tmp_path / "second", *arguments)
    assert result.exit_code == 0, result.exception
    names = ("program.json", "weights.safetensors")
    assert all((tmp_path / "full" / n).read_bytes() == (place / "three" / n).read_bytes() for n in names)


@pytest.mark.parametrize(
    ("parent", "new", "text"),
    [
        ("one", "other", "another program"),
        ("one", "one", "not a bit differs"),
        ("one", "missing", "no snapshot"),
    ],
)
def test_what_does_not_go_together_is_refused_and_nothing_is_written(place, tmp_path, parent, new, text):
    result = run(place / parent, place / new, "--out", tmp_path / "delta")
    assert isinstance(result.exception, InvalidInput)
    assert text in result.exception.message
    assert not list(tmp_path.iterdir())
