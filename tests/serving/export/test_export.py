"""Export: equal bits, no pickle, equal digests for equal models, and refusals that name the user's line."""

import inspect
import json
import pickle
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from ipnext.errors import InvalidInput, LoadFailed, UnsupportedModel
from ipnext.model.registry.registry import SnapshotManifest
from serving import graph
from serving.engines.torch.engine import TorchEngine
from serving.engines.torch.program import read_program
from serving.export import export_model
from serving.export.checks import unsupported_error


class Everything(nn.Module):
    """Tied weights, buffers of both kinds, a tensor constant, a transposed weight, dropout, int, float and bool."""

    def __init__(self, seed: int = 0) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.table = nn.EmbeddingBag(100, 16)
        self.first = nn.Linear(20, 16)
        self.tied = self.table.weight
        self.norm = nn.BatchNorm1d(16)
        self.turned = nn.Parameter(torch.randn(16, 16).t())
        self.register_buffer("scale", torch.tensor(2.0))
        self.register_buffer("shift", torch.ones(16), persistent=False)
        self.constant = torch.arange(16.0)
        self.short = nn.Parameter(torch.randn(16, 16, dtype=torch.bfloat16))
        self.drop = nn.Dropout(0.5)

    def forward(self, ids, dense, mask):
        x = torch.cat([self.table(ids), dense], 1)
        x = self.drop(self.norm(torch.relu(self.first(x)))) * self.scale + self.shift - self.constant
        x = torch.where(mask[:, None], x @ self.turned, x) + self.tied[ids[:, 0]]
        return {"score": torch.sigmoid(x.sum(1)), "half": x.bfloat16() @ self.short, "top": x.argmax(1)}


def inputs_of(batch: int) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(batch)
    return {
        "ids": torch.randint(0, 100, (batch, 3), generator=generator),
        "dense": torch.randn(batch, 4, generator=generator),
        "mask": torch.rand(batch, generator=generator) > 0.5,
    }


@pytest.fixture(scope="module")
def exported(tmp_path_factory):
    module = Everything()
    directory = tmp_path_factory.mktemp("export") / "snapshot"
    return module, directory, export_model(module, inputs_of(4), directory, parent="0" * 64)


def test_a_loaded_snapshot_has_the_bits_of_the_module(exported):
    module, directory, manifest = exported
    part = TorchEngine().load(directory, manifest, {})
    module.eval()
    for batch in (1, 2, 64, 257):
        request = inputs_of(batch)
        with torch.no_grad():
            expected = module(**request)
        got = part.infer({name: tensor.numpy() for name, tensor in request.items()})
        assert list(got) == list(expected)
        assert torch.equal(torch.from_numpy(got["score"]), expected["score"])
        assert torch.equal(torch.from_numpy(got["top"]), expected["top"])
        assert torch.equal(torch.from_numpy(got["half"].view(np.int16)).view(torch.bfloat16), expected["half"])


def test_the_manifest_describes_files_and_tensors(exported):
    _, directory, manifest = exported
    assert SnapshotManifest.model_validate_json((directory / "snapshot.json").read_bytes()) == manifest
    assert {file.path: file.size_bytes for file in manifest.files} == {
        path.name: path.stat().st_size for path in directory.iterdir() if path.name != "snapshot.json"
    }
    signature = manifest.signature
    assert [(s.name, s.datatype, s.shape) for s in signature.inputs] == [
        ("ids", "INT64", (-1, 3)),
        ("dense", "FP32", (-1, 4)),
        ("mask", "BOOL", (-1,)),
    ]
    assert [(s.name, s.datatype, s.shape) for s in signature.outputs] == [
        ("score", "FP32", (-1,)),
        ("half", "BF16", (-1, 16)),
        ("top", "INT64", (-1,)),
    ]
    assert (manifest.engine, manifest.parent) == ("torch", "0" * 64)
    assert set(manifest.producer) == {"ipnext", "torch"}


def test_no_file_holds_a_pickle_a_zip_or_a_path_of_this_machine(exported):
    _, directory, _ = exported
    for path in directory.iterdir():
        content = path.read_bytes()
        assert not content.startswith((b"PK", b"\x80"))
        assert b".pkl" not in content
        assert str(Path(__file__).parent).encode() not in content
        with pytest.raises(Exception, match=r".*"):
            pickle.loads(content)


def test_loading_never_unpickles(exported, monkeypatch):
    _, directory, manifest = exported

    def refuse(*args, **kwargs):
        pytest.fail("a pickle was read")

    for owner, name in ((pickle, "load"), (pickle, "loads"), (pickle, "Unpickler"), (torch, "load")):
        monkeypatch.setattr(owner, name, refuse)
    TorchEngine().load(directory, manifest, {}).warm_up()


def test_tied_weights_are_stored_once(exported):
    module, directory, _ = exported
    unique = {t.data_ptr(): t.nbytes for t in [*module.state_dict().values(), module.shift, module.constant]}
    assert (directory / "weights.safetensors").stat().st_size < sum(unique.values()) + 4096


def test_the_module_stays_as_it_was(tmp_path):
    module = Everything()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    export_model(module, inputs_of(2), tmp_path / "out")
    assert module.training
    assert module.drop.training
    assert all(torch.equal(before[name], tensor) for name, tensor in module.state_dict().items())


EXPORT_IN_A_PROCESS = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("user_models", sys.argv[1])
models = importlib.util.module_from_spec(spec)
sys.modules["user_models"] = models
spec.loader.exec_module(models)
manifest = models.export_model(models.Everything(), models.inputs_of(1), sys.argv[2], parent="0" * 64)
print(manifest.digest)
"""


@pytest.mark.usefixtures("subprocesses")
def test_the_same_module_and_weights_give_the_same_digest_in_another_process(exported, tmp_path):
    """The other process has another hash seed and an example of another batch size."""
    digest = subprocess.run(
        [sys.executable, "-c", EXPORT_IN_A_PROCESS, __file__, str(tmp_path / "again")],
        env={"PYTHONHASHSEED": "7", "OMP_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"},
        check=True,
        capture_output=True,
        text=True,
    ).stdout.strip()
    assert digest == exported[2].digest


def test_other_weights_give_another_digest(exported, tmp_path):
    assert export_model(Everything(1), inputs_of(2), tmp_path / "other").digest != exported[2].digest


class Single(nn.Module):
    def forward(self, x):
        return x * 2


class Pair(nn.Module):
    def forward(self, x):
        return x * 2, x.sum(1)


@pytest.mark.parametrize(("module", "names"), [(Single(), ["output"]), (Pair(), ["output_0", "output_1"])])
def test_unnamed_outputs_get_names(tmp_path, module, names):
    manifest = export_model(module, {"x": torch.ones(1, 2)}, tmp_path / "out")
    assert [spec.name for spec in manifest.signature.outputs] == names


class LoopOverBatch(nn.Module):
    def forward(self, x):
        return torch.stack([x[row] * 2 for row in range(x.shape[0])])  # the line


class BranchOnValue(nn.Module):
    def forward(self, x):
        if x.sum() > 0:  # the line
            return x
        return -x


class BranchOnBatch(nn.Module):
    def forward(self, x):  # the line
        return x if x.shape[0] > 2 else -x


class Numbered(nn.Module):
    def forward(self, x):
        return x.view(3, -1) * 2  # the line


class Inner(nn.Module):
    def forward(self, x):
        return torch.tensor(x.tolist())  # the line


class Outer(nn.Module):
    def __init__(self):
        super().__init__()
        self.inner = Inner()

    def forward(self, x):
        return self.inner(x)


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.register_buffer("seen", torch.zeros(1))

    def forward(self, x):  # the line
        self.seen.add_(1)
        return x + self.seen


class Overwriting(nn.Module):
    def forward(self, x):  # the line
        return x.mul_(2)


class Noisy(nn.Module):
    def forward(self, x):  # the line
        return x + torch.rand_like(x)


class Squeezing(nn.Module):
    def forward(self, x):  # the line
        return x.sum(1, keepdim=True).squeeze()


class Conditional(nn.Module):
    def forward(self, x):  # the line
        return torch.cond(x.sum() > 0, lambda a: a * 2, lambda a: a * 3, (x,))


class Attention(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 8, batch_first=True)

    def forward(self, x):
        return self.layer(x).mean(1)


def test_attention_is_exported(tmp_path):
    """Its eager fast path is fused and differs in the last bits; the plain one is what gets exported."""
    assert export_model(Attention(), {"x": torch.ones(2, 5, 8)}, tmp_path / "out").signature.outputs


class Wordy(nn.Module):
    def forward(self, x):  # the line
        return {"text": "hello", "x": x}


def marked_line(module: nn.Module) -> str:
    lines, first = inspect.getsourcelines(type(module))
    return f"{__file__}:{first + next(i for i, line in enumerate(lines) if '# the line' in line)}"


@pytest.mark.parametrize(
    ("module", "place", "hint"),
    [
        (LoopOverBatch(), LoopOverBatch(), "Python loop over the batch"),
        (BranchOnValue(), BranchOnValue(), "torch.where"),
        (BranchOnBatch(), BranchOnBatch(), "batch size"),
        (Numbered(), Numbered(), "a view with a number"),
        (Outer(), Inner(), "batch"),
        (Counting(), Counting(), "keeps no state"),
        (Overwriting(), Overwriting(), "keeps no state"),
        (Noisy(), Noisy(), "deterministic"),
        (Squeezing(), Squeezing(), "treat every batch size alike"),
        (Conditional(), Conditional(), "ATen operations only"),
        (Wordy(), Wordy(), "return a tensor, a dict"),
    ],
    ids=lambda value: type(value).__name__ if isinstance(value, nn.Module) else "",
)
def test_what_cannot_be_exported_is_refused_with_line_and_hint(tmp_path, capfd, module, place, hint):
    with pytest.raises(UnsupportedModel) as refusal:
        export_model(module, {"x": torch.randn(4, 3)}, tmp_path / "out")
    assert refusal.value.message.startswith(f"{marked_line(place)}: {type(module).__name__} cannot be exported")
    assert hint in refusal.value.message
    assert list(tmp_path.iterdir()) == []
    assert "Traceback" not in capfd.readouterr().err


def test_no_line_of_this_package_is_named_as_the_users():
    class Ours(nn.Module):
        """A layer that would be part of this package."""

    Ours.__module__ = graph.__name__
    reason = f'File "{__file__}", line 3, in forward\n  File "{graph.__file__}", line 9, in call'
    assert unsupported_error(nn.Sequential(Wordy(), Ours()), reason).value == f"{__file__}:3"


@pytest.mark.parametrize(
    ("examples", "words"),
    [
        ({}, "at least one entry"),
        ([torch.zeros(2)], "must be a mapping"),
        ({"x": [1.0]}, r"example_inputs.x: must be a torch.Tensor, got list"),
        ({"x": torch.tensor(1.0)}, "at least one dimension"),
        ({"x": torch.zeros(2, dtype=torch.complex64)}, "a V2 datatype"),
        ({"x": torch.zeros(2, device="meta")}, "on meta"),
        ({"x": torch.zeros(2), "y": torch.zeros(3)}, "one size >= 1 for all"),
        ({"x": torch.zeros(0, 2)}, "one size >= 1"),
        ({"not a name": torch.zeros(2)}, "name of an argument"),
        ({"y": torch.zeros(2)}, "forward fails on them"),
    ],
)
def test_bad_examples_are_refused(tmp_path, examples, words):
    with pytest.raises(InvalidInput, match=words):
        export_model(Single(), examples, tmp_path / "out")
    assert list(tmp_path.iterdir()) == []


def test_a_directory_with_content_is_refused_and_an_empty_one_is_filled(tmp_path):
    export_model(Single(), {"x": torch.ones(2)}, tmp_path)
    with pytest.raises(InvalidInput, match="never overwritten"):
        export_model(Single(), {"x": torch.ones(2)}, tmp_path)


def rewritten(directory: Path, target: Path, change) -> Path:
    target.mkdir()
    for path in directory.iterdir():
        (target / path.name).write_bytes(path.read_bytes())
    document = json.loads((target / "program.json").read_text())
    change(document)
    (target / "program.json").write_text(json.dumps(document))
    return target


def _call(target):
    def change(document):
        document["program"]["graph_module"]["graph"]["nodes"][0]["target"] = target

    return change


def _expression(text):
    def change(document):
        program = json.dumps(document["program"])
        start = program.index('"expr_str": "') + len('"expr_str": "')
        end = program.index('"', start)
        document["program"] = json.loads(program[:start] + text + program[end:])

    return change


def _guard(document):
    document["program"]["guards_code"] = ["print(1)"]


@pytest.mark.parametrize(
    "change",
    [
        _call("torch.hub.load"),
        _call("torch.load"),
        _call("torch.ops.aten.add.Tensor.__class__"),
        _call("#extension:thing"),
        _expression("__import__('os').system('true')"),
        _expression("Symbol.__class__"),
        _expression("(lambda: 0)()"),
        _expression("[x for x in ()]"),
        _guard,
    ],
)
def test_a_program_that_would_run_other_code_is_not_loaded(exported, tmp_path, change):
    _, directory, _ = exported
    with pytest.raises(LoadFailed, match="which a snapshot may not"):
        read_program(rewritten(directory, tmp_path / "bad", change))


def _drop(document):
    del document["program"]["graph_module"]["signature"]


def _rename(document):
    document["inputs"] = document["inputs"][::-1]


def _lose_tensor(document):
    document["tensors"].popitem()


def _other_format(document):
    document["format"] = "other"


@pytest.mark.parametrize("change", [_drop, _rename, _lose_tensor, _other_format])
def test_a_damaged_program_is_not_loaded(exported, tmp_path, change):
    _, directory, _ = exported
    with pytest.raises(LoadFailed, match="export the model again"):
        read_program(rewritten(directory, tmp_path / "bad", change))


def test_an_index_beyond_a_table_is_the_requests_fault(exported):
    _, directory, manifest = exported
    part = TorchEngine().load(directory, manifest, {})
    request = {name: tensor.numpy() for name, tensor in inputs_of(2).items()}
    request["ids"] = request["ids"] + 1000
    with pytest.raises(InvalidInput, match="beyond its table"):
        part.infer(request)


def test_read_only_and_unaligned_arrays_are_taken_as_they_are(exported):
    module, directory, manifest = exported
    part = TorchEngine().load(directory, manifest, {})
    request = {name: tensor.numpy() for name, tensor in inputs_of(2).items()}
    raw = b"\0" + request["dense"].tobytes()
    request["dense"] = np.frombuffer(raw, np.float32, offset=1).reshape(2, 4)
    expected = module.eval()(**inputs_of(2))["score"].detach()
    assert torch.equal(torch.from_numpy(part.infer(request)["score"]), expected)


def test_a_closed_part_gives_its_memory_back_and_refuses(exported):
    _, directory, manifest = exported
    part = TorchEngine().load(directory, manifest, {})
    assert part.size_bytes > 0
    part.close()
    with pytest.raises(LoadFailed, match="closed"):
        part.infer({})


def test_a_thread_count_that_is_no_number_is_refused(exported):
    _, directory, manifest = exported
    with pytest.raises(LoadFailed, match=r"settings\.threads"):
        TorchEngine().load(directory, manifest, {"threads": "many"})
