"""`ipnext compile` of modules whose program needs tensors that are no part of their state."""

import json

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from ipnext.cli.app import app
from ipnext.model.registry.registry import SnapshotManifest
from serving.engines.torch.compiled import CompiledProgram, read_compiled
from serving.engines.torch.engine import TorchEngine
from serving.export import export_model

pytestmark = pytest.mark.usefixtures("subprocesses")


class Scaled(nn.Module):
    """x [B, 4] -> [B]: scaled by a buffer that `state_dict` leaves out, moved by one that it holds."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.top = nn.Linear(4, 1)
        self.register_buffer("scales", torch.tensor([2.0, 3.0, 5.0, 7.0]), persistent=False)
        self.register_buffer("offset", torch.tensor([0.25]))

    def forward(self, x):
        return self.top(x * self.scales).squeeze(1) + self.offset


def load(directory, **settings):
    manifest = SnapshotManifest.model_validate_json((directory / "snapshot.json").read_bytes())
    part = TorchEngine(trusts_libraries=True).load(directory, manifest, settings)
    part.warm_up()
    return part


def test_a_buffer_outside_the_state_is_compiled_and_given_to_the_library(tmp_path):
    assert "scales" not in Scaled().state_dict()
    export_model(Scaled(), {"x": torch.zeros(2, 4)}, tmp_path / "source")
    options = ["--out", str(tmp_path / "compiled"), "--cache", str(tmp_path / "cache"), "-o", "json"]
    result = CliRunner().invoke(app, ["compile", str(tmp_path / "source"), *options])
    assert result.exit_code == 0, result.stderr
    assert max(d["relative"] for d in json.loads(result.stdout)["differences"]) <= 1e-5

    part = load(tmp_path / "compiled", compile=True)
    assert isinstance(part._program, CompiledProgram)
    x = torch.tensor([[1.0, -2.0, 0.5, 3.0], [0.0, 0.0, 0.0, 1.0]])
    with torch.no_grad():
        expected = Scaled()(x)
    torch.testing.assert_close(torch.from_numpy(part.infer({"x": x.numpy()})["output"]), expected)
    given = set(read_compiled(tmp_path / "compiled").runner.get_constant_names_to_original_fqns().values())
    assert given >= {"scales", "offset"}
    assert {key.partition(":")[2] for key in load_file(tmp_path / "source" / "weights.safetensors")} >= given
