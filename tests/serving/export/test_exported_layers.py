"""Models of usual layers can be exported, pass the check of a publish and load, with the module's answers."""

from inspect import signature

import numpy as np
import pytest
import torch
import torch.nn.functional as F  # noqa: N812 - as everybody calls it
from torch import nn

from ipnext.artifacts.programs.reader import parse_program
from serving.engines.torch.engine import TorchEngine
from serving.export import export_model

ROWS = 3


class Calling(nn.Module):
    """A function as a module."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        return self.function(x)


class Recurrent(nn.Module):
    def __init__(self, layer):
        super().__init__()
        self.layer = layer

    def forward(self, x):
        return self.layer(x)[0]


class Bags(nn.Module):
    def __init__(self, mode):
        super().__init__()
        self.bag = nn.EmbeddingBag(20, 4, mode=mode)

    def forward(self, ids):
        return self.bag(ids)


class Attending(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2, batch_first=True)

    def forward(self, x):
        return self.attention(x, x, x, need_weights=False)[0]


def normal(*shape):
    return torch.randn(ROWS, *shape, generator=torch.Generator().manual_seed(1))


def whole(*shape, limit=20):
    return torch.randint(0, limit, (ROWS, *shape), generator=torch.Generator().manual_seed(1))


LAYERS = {
    "linear": (nn.Linear(4, 5), normal(4)),
    "bilinear": (Calling(lambda x: F.bilinear(x, x, torch.ones(2, 4, 4))), normal(4)),
    "embedding": (nn.Embedding(20, 4, padding_idx=0), whole(3)),
    "embedding-bag-sum": (Bags("sum"), whole(3)),
    "embedding-bag-mean": (Bags("mean"), whole(3)),
    "conv1d": (nn.Conv1d(2, 3, 3, padding=1), normal(2, 9)),
    "conv1d-same": (nn.Conv1d(2, 3, 3, padding="same"), normal(2, 9)),
    "conv2d": (nn.Conv2d(2, 4, 3, stride=2, groups=2), normal(2, 9, 9)),
    "conv2d-circular": (nn.Conv2d(2, 4, 3, padding=1, padding_mode="circular"), normal(2, 9, 9)),
    "conv-transpose": (nn.ConvTranspose2d(2, 4, 3), normal(2, 5, 5)),
    "layer-norm": (nn.LayerNorm(6), normal(6)),
    "rms-norm": (nn.RMSNorm(6), normal(6)),
    "group-norm": (nn.GroupNorm(2, 4), normal(4, 5)),
    "batch-norm": (nn.BatchNorm1d(6), normal(6)),
    "batch-norm before a write in place": (nn.Sequential(nn.BatchNorm1d(6), nn.ReLU(inplace=True)), normal(6)),
    "batch-norm without weights": (nn.Sequential(nn.BatchNorm1d(6, affine=False), nn.ReLU(inplace=True)), normal(6)),
    "instance-norm": (nn.InstanceNorm1d(4), normal(4, 5)),
    "attention": (Attending(), normal(5, 8)),
    "transformer": (nn.TransformerEncoderLayer(8, 2, 8, batch_first=True), normal(5, 8)),
    "dot-product-attention": (Calling(lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True)), normal(5, 8)),
    "gru": (Recurrent(nn.GRU(4, 6, batch_first=True)), normal(5, 4)),
    "lstm": (Recurrent(nn.LSTM(4, 6, batch_first=True, bidirectional=True)), normal(5, 4)),
    "rnn": (Recurrent(nn.RNN(4, 6, batch_first=True)), normal(5, 4)),
    "max-pool": (nn.MaxPool2d(2), normal(2, 8, 8)),
    "average-pool": (nn.AvgPool1d(2), normal(2, 8)),
    "adaptive-pool": (nn.AdaptiveAvgPool2d(2), normal(2, 8, 8)),
    "upsample": (nn.Upsample(scale_factor=2, mode="bilinear"), normal(2, 4, 4)),
    "pixel-shuffle": (nn.PixelShuffle(2), normal(4, 3, 3)),
    "flatten": (nn.Sequential(nn.Flatten(), nn.Dropout(0.5)), normal(2, 3)),
    "cosine": (Calling(lambda x: F.cosine_similarity(x, x.flip(1))), normal(4)),
    "normalize": (Calling(F.normalize), normal(4)),
    "relu-in-place": (nn.Sequential(nn.Linear(4, 4), nn.ReLU(inplace=True)), normal(4)),
    "writes-in-place": (Calling(lambda x: x.clone().add_(1).clamp_(0).mul_(2)), normal(4)),
    "one-hot": (Calling(lambda x: F.one_hot(x, 20).float()), whole()),
    "bucketize": (Calling(lambda x: torch.bucketize(x, torch.arange(4.0))), normal(4)),
    "searchsorted": (Calling(lambda x: torch.searchsorted(torch.arange(4.0), x, side="right")), normal(4)),
    "top-k": (Calling(lambda x: x.topk(2, dim=1).values), normal(4)),
    "sort": (Calling(lambda x: x.sort(dim=1).values + x.argsort(dim=1)), normal(4)),
    "gather": (Calling(lambda x: x.gather(1, x.argsort(1))), normal(4)),
    "scatter": (Calling(lambda x: torch.zeros_like(x).scatter(1, x.argsort(1), x)), normal(4)),
    "scatter-add": (Calling(lambda x: torch.zeros_like(x).scatter_add(1, x.argsort(1), x)), normal(4)),
    "scatter-reduce": (Calling(lambda x: x.scatter_reduce(1, x.argsort(1), x, reduce="amax")), normal(4)),
    "index-select": (Calling(lambda x: x.index_select(1, torch.tensor([2, 0]))), normal(4)),
    "index": (Calling(lambda x: x[:, torch.tensor([2, 0])]), normal(4)),
    "cat-stack-split": (
        Calling(lambda x: torch.cat([*x.chunk(2, 1), *torch.stack(x.split(2, 1), 1).unbind(1)], 1)),
        normal(4),
    ),
    "where": (Calling(lambda x: torch.where(x > 0, x, 0.0).masked_fill(x > 1, 1.0)), normal(4)),
    "cumsum": (Calling(lambda x: x.cumsum(1) + x.cumprod(1)), normal(4)),
    "einsum": (Calling(lambda x: torch.einsum("bij,bjk->bik", x, x)), normal(4, 4)),
    "matmul": (Calling(lambda x: x @ x.transpose(1, 2)), normal(4, 5)),
    "reductions": (
        Calling(lambda x: torch.stack([x.mean(1), x.std(1), x.amax(1), x.logsumexp(1), x.norm(dim=1)], 1)),
        normal(4),
    ),
    "activations": (
        Calling(
            lambda x: F.gelu(x, approximate="tanh") + F.silu(x) + F.elu(x) + F.softplus(x) + F.mish(x) + F.softmax(x, 1)
        ),
        normal(4),
    ),
    "arithmetic": (Calling(lambda x: (x.exp() / (x.abs() + 1)).pow(2).log1p().sqrt().clamp(0, 5).round()), normal(4)),
    "division": (Calling(lambda x: torch.div(x, 3, rounding_mode="floor") + x % 2), normal(4)),
    "bits": (Calling(lambda x: (x & 3) | (x << 2) ^ 1), whole(4)),
    "types": (Calling(lambda x: x.to(torch.int64).float().to(torch.bfloat16).float()), normal(4)),
    "sizes": (Calling(lambda x: x.reshape(x.shape[0] * 2, -1).reshape(x.shape[0], -1) / x.shape[1]), normal(4)),
    "size-of-batch": (Calling(lambda x: x.sum(1) / x.shape[0]), normal(4)),
    "triangle": (Calling(lambda x: x * torch.ones(4, 4).tril()), normal(4, 4)),
    "constant": (Calling(lambda x: x + torch.tensor([1.0, 2.0, 3.0, 4.0])), normal(4)),
    "fourier": (Calling(lambda x: torch.fft.rfft(x).abs()), normal(8)),
    "weight-norm": (nn.utils.parametrizations.weight_norm(nn.Linear(4, 4)), normal(4)),
    "named-oddly": (nn.Sequential(), normal(4)),
}  # fmt: skip
LAYERS["named-oddly"][0].add_module("user-tower / left", nn.Linear(4, 4))


@pytest.mark.parametrize("name", LAYERS)
def test_usual_layers_are_exported_checked_and_loaded(tmp_path, name):
    module, example = LAYERS[name]
    argument = next(iter(signature(module.forward).parameters))
    manifest = export_model(module, {argument: example}, tmp_path / "out")

    parse_program((tmp_path / "out" / "program.json").read_bytes())
    part = TorchEngine().load(tmp_path / "out", manifest, {})
    part.warm_up()
    (got,) = part.infer({argument: example.numpy()}).values()

    with torch.no_grad():
        expected = module.eval()(example).numpy()
    np.testing.assert_allclose(got, expected, rtol=1e-5, atol=1e-5)
