"""A loaded snapshot has the bits of the module's own forward, whatever decides which kernel torch takes."""

import numpy as np
import pytest
import torch
from torch import nn

from serving.engines.torch.engine import TorchEngine
from serving.export import export_model

BATCHES = (1, 2, 3, 4, 64, 257)


class Attention(nn.Module):
    """Multiplies a transposed tensor of three dimensions: torch folds it into two if the weight requires gradients."""

    def __init__(self):
        super().__init__()
        self.items = nn.Embedding(30, 8)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)
        self.out = nn.Linear(8, 3)

    def forward(self, ids):
        x = self.items(ids)
        return self.out(self.attention(x, x, x, need_weights=False)[0].transpose(0, 1)).transpose(0, 1)


@pytest.mark.parametrize("frozen", [False, True])
def test_weights_keep_what_decides_how_a_product_is_folded(frozen, tmp_path):
    torch.manual_seed(0)
    module = Attention().eval().requires_grad_(requires_grad=not frozen)
    part = load(tmp_path, module, {"ids": torch.randint(0, 30, (3, 5))})
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)  # the fused path has other last bits, and is not what is exported
    try:
        for batch in BATCHES:
            ids = torch.randint(0, 30, (batch, 5))
            with torch.no_grad():
                expected = module(ids)
            assert torch.equal(torch.from_numpy(part.infer({"ids": ids.numpy()})["output"]), expected), batch
    finally:
        torch.backends.mha.set_fastpath_enabled(before)


def test_where_an_input_lies_in_memory_changes_no_bit(tmp_path):
    """A tensor from a request's body begins anywhere; where it begins decides the last bits of some sums."""
    torch.manual_seed(0)
    part = load(tmp_path, nn.Sequential(nn.Linear(13, 7), nn.Tanh(), nn.Linear(7, 5)), {"input": torch.randn(3, 13)})
    for batch in BATCHES:
        values = np.random.default_rng(batch).standard_normal((batch, 13)).astype(np.float32)
        expected = part.infer({"input": values})["output"]
        for offset in range(0, 64, 4):
            body = np.zeros(values.nbytes + 128, np.uint8)
            start = -body.ctypes.data % 64 + offset
            moved = body[start : start + values.nbytes].view(np.float32).reshape(values.shape)
            moved[:] = values
            assert np.array_equal(part.infer({"input": moved})["output"], expected), (batch, offset)


def load(tmp_path, module, inputs):
    manifest = export_model(module, inputs, tmp_path / "snapshot")
    return TorchEngine().load(tmp_path / "snapshot", manifest, {})
