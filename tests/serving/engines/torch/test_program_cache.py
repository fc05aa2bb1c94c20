"""Snapshots of one program share its graph, never its weights."""

import gc
import weakref

import pytest
import torch
from torch import nn

from serving.engines.torch import engine as torch_engine
from serving.engines.torch import program as torch_program
from serving.engines.torch.engine import TorchEngine
from serving.engines.torch.program import read_program
from serving.engines.torch.program_cache import TemplateCache
from serving.export import export_model


class Scorer(nn.Module):
    def __init__(self, seed, width=4):
        super().__init__()
        torch.manual_seed(seed)
        self.table = nn.Embedding(64, width)
        self.top = nn.Linear(width, 1)

    def forward(self, ids):
        return torch.sigmoid(self.top(self.table(ids))).squeeze(1)


IDS = torch.tensor([0, 1, 5])


@pytest.fixture
def snapshot(tmp_path):
    """Exports a scorer; its module and directory."""

    def snapshot(seed, **more):
        module, directory = Scorer(seed, **more).eval(), tmp_path / f"{seed}-{more}"
        return module, directory, export_model(module, {"ids": IDS}, directory)

    return snapshot


def test_a_second_snapshot_of_a_program_brings_only_weights(snapshot, monkeypatch):
    directories = [snapshot(seed)[1] for seed in (1, 2)]
    templates = TemplateCache()
    first = read_program(directories[0], templates)
    monkeypatch.setattr(torch_program, "rebuild", None)
    second = read_program(directories[1], templates)
    assert second.template is first.template
    assert second.arguments is not first.arguments


def test_each_snapshot_answers_with_its_own_weights(snapshot):
    engine, served = TorchEngine(), []
    for module, directory, manifest in (snapshot(1), snapshot(2)):
        part = engine.load(directory, manifest, {})
        part.warm_up()
        served.append((module, part))
    for module, part in served:
        answer = torch.from_numpy(part.infer({"ids": IDS.numpy()})["output"])
        assert torch.equal(answer, module(IDS).detach())


def test_rows_are_tried_once_for_a_program(snapshot, monkeypatch):
    engine = TorchEngine()
    tried = []
    monkeypatch.setattr(torch_engine, "rows_are_independent", lambda *_: tried.append(1) or True)
    parts = [engine.load(directory, manifest, {}) for _, directory, manifest in (snapshot(1), snapshot(2))]
    for part in parts:
        part.warm_up()
    assert [part.rows_are_independent for part in parts] == [True, True]
    assert tried == [1]


def test_another_program_is_rebuilt(snapshot):
    templates = TemplateCache()
    first = read_program(snapshot(1)[1], templates)
    other = read_program(snapshot(1, width=8)[1], templates)
    assert other.template is not first.template


def test_calls_that_give_other_bits_on_the_new_weights_are_tried_anew(snapshot):
    directories = [snapshot(seed)[1] for seed in (1, 2)]
    templates = TemplateCache()
    first, second = (read_program(directory, templates) for directory in directories)
    with torch.inference_mode():
        good = first.direct([IDS]).calls
        first.template.calls = {**good, "sigmoid": torch.tanh}
        graph = second.direct([IDS])
        assert graph.calls["sigmoid"] is good["sigmoid"]
        assert torch.equal(graph.whole()(IDS)[0], second.run([IDS])[0])


def test_a_blueprint_and_weights_go_with_the_last_snapshot_without_a_collection(snapshot):
    engine = TorchEngine()
    _, directory, manifest = snapshot(1)
    part = engine.load(directory, manifest, {})
    part.warm_up()
    weights = [weakref.ref(t.untyped_storage()) for t in part._program.arguments if isinstance(t, torch.Tensor)]
    gc.disable()
    try:
        part.close()
        assert [ref() for ref in weights] == [None] * len(weights)
    finally:
        gc.enable()
    gc.collect()
    again = engine.load(directory, manifest, {})
    again.warm_up()
    again.close()
