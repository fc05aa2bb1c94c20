"""An exported graph as a plain function gives the bits of the graph, and takes a binding only if its bits agree."""

import numpy as np
import pytest
import torch
from torch import nn

from serving.engines.torch.fx import direct_calls
from serving.engines.torch.fx.direct_calls import DirectGraph
from serving.engines.torch.program import read_program
from serving.export import export_model

BATCHES = (1, 2, 3, 64, 257)


class Mixed(nn.Module):
    """Gathers, bags, normalises, multiplies, splits, masks, casts; gives two outputs, one of them an input."""

    def __init__(self):
        super().__init__()
        self.table = nn.Embedding(50, 8)
        self.bag = nn.EmbeddingBag(40, 8, mode="mean")
        self.norm = nn.LayerNorm(24)
        self.deep = nn.Sequential(nn.Linear(24, 16), nn.GELU(), nn.Linear(16, 6), nn.Softmax(-1))
        self.register_buffer("scale", torch.tensor(0.5))

    def forward(self, ids, words, dense):
        x = torch.cat([self.table(ids), self.bag(words), dense], dim=1)
        left, right = self.deep(self.norm(x)).chunk(2, dim=1)
        crossed = torch.bmm(x.unsqueeze(2), x.unsqueeze(1)).flatten(1)[:, ::7].sum(1, keepdim=True)
        masked = torch.where(ids.unsqueeze(1) > 3, left, right.sigmoid()) * self.scale + crossed.clamp(-1, 1)
        return masked.to(torch.float64).float(), dense


def inputs(rows, seed=0):
    random = torch.Generator().manual_seed(seed)
    return {
        "ids": torch.randint(0, 50, (rows,), generator=random),
        "words": torch.randint(0, 40, (rows, 4), generator=random),
        "dense": torch.randn(rows, 8, generator=random),
    }


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    torch.manual_seed(0)
    module = Mixed().eval()
    directory = tmp_path_factory.mktemp("mixed") / "snapshot"
    export_model(module, inputs(3), directory)
    return module, read_program(directory)


def made(program, rows=3):
    example = [inputs(rows)[name] for name in program.inputs]
    with torch.inference_mode():
        return DirectGraph(program.module.graph, program.arguments, program.slots, example).whole()


def test_every_bit_is_that_of_the_modules_own_forward(exported):
    module, program = exported
    function = made(program)
    for rows in BATCHES:
        given = inputs(rows, seed=rows)
        with torch.inference_mode():
            expected = module(**given)
            got = function(*(given[name] for name in program.inputs))
        for left, right in zip(expected, got, strict=True):
            assert torch.equal(left, right), rows


def test_torchs_own_bindings_are_called(exported):
    _, program = exported
    trial = direct_calls._Trial(program.module.graph, program.arguments, program.slots)
    with torch.inference_mode():
        calls = trial.run([inputs(3)[name] for name in program.inputs])
    bound = [call for call in calls.values() if not hasattr(call, "_schema") and "OpOverload" not in repr(call)]
    assert len(bound) >= len(calls) // 2


def test_a_binding_that_gives_other_bits_is_not_taken(exported, monkeypatch):
    module, program = exported

    def other_bits(*_args, **_kwargs):
        return torch.zeros(1)

    def refuses(*_args, **_kwargs):
        msg = "not for these arguments"
        raise TypeError(msg)

    monkeypatch.setattr(direct_calls, "_bindings", lambda _target: [refuses, other_bits])
    function = made(program)
    given = inputs(5)
    with torch.inference_mode():
        expected, got = module(**given), function(*(given[name] for name in program.inputs))
    assert all(torch.equal(left, right) for left, right in zip(expected, got, strict=True))


@pytest.mark.parametrize("late", [{"ids"}, {"dense"}, {"words", "dense"}])
def test_two_steps_give_the_bits_of_one(exported, late):
    module, program = exported
    example = [inputs(3)[name] for name in program.inputs]
    with torch.inference_mode():
        graph = DirectGraph(program.module.graph, program.arguments, program.slots, example)
        early, rest = graph.stage({number for number, name in enumerate(program.inputs) if name in late})
        for rows in BATCHES:
            given = inputs(rows, seed=rows)
            state = early(*(given[name] for name in program.inputs if name not in late))
            got = rest(state, *(given[name] for name in program.inputs if name in late))
            assert all(torch.equal(left, right) for left, right in zip(module(**given), got, strict=True)), rows


def test_nothing_begins_where_all_waits_for_the_late_inputs(exported):
    _, program = exported
    with torch.inference_mode():
        graph = DirectGraph(program.module.graph, program.arguments, program.slots, list(inputs(3).values()))
    assert graph.stage(set(range(3))) is None


def test_what_the_graph_itself_refuses_is_raised(exported):
    _, program = exported
    given = inputs(3) | {"ids": torch.tensor([0, 1, 50])}
    with pytest.raises(IndexError), torch.inference_mode():
        DirectGraph(program.module.graph, program.arguments, program.slots, [given[name] for name in program.inputs])


@pytest.mark.parametrize(
    ("left", "right", "same"),
    [
        (torch.tensor([np.nan]), torch.tensor([np.nan]), True),
        (torch.tensor([0.0]), torch.tensor([-0.0]), False),
        (torch.ones(2, 3), torch.ones(3, 2).T, False),
        (torch.ones(2), torch.ones(2, dtype=torch.float64), False),
        (torch.zeros(0, 3), torch.zeros(0, 3), True),
        ((torch.ones(1), 2), (torch.ones(1), 2), True),
        ([torch.ones(1)], [torch.ones(1), torch.ones(1)], False),
        (1, 1.0, False),
        (torch.arange(4).view(1, 4)[:, 2], torch.arange(4).view(1, 4)[:, 2], True),
        (torch.arange(4).view(1, 4)[:, 2], torch.arange(4).view(1, 4)[:, 3], False),
    ],
)
def test_identical_means_every_bit_stride_and_type(left, right, same):
    assert direct_calls._identical(left, right) is same
