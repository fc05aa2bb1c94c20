"""`ipnext compile` from outside, and its snapshots in the engine: near the source's answers, or a clear refusal."""

import json
import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from typer.testing import CliRunner

from ipnext.artifacts.signing import sign_digest, write_key_pair
from ipnext.artifacts.stores.file_store import FileArtifactStore
from ipnext.artifacts.upload import ingest_directory
from ipnext.cli.app import app
from ipnext.errors import ArtifactDigestMismatch, InvalidInput, LoadFailed
from ipnext.model.deployment.host_control import HostedSnapshot
from ipnext.model.registry.registry import SIGNATURE_FILE, SnapshotManifest
from serving.compiling import compile as compiling
from serving.compiling import library_cache
from serving.engines.torch.compiled import CompiledProgram, read_compiled
from serving.engines.torch.engine import TorchEngine
from serving.export import export_model

FILES = {"program.json", "weights.safetensors", "library.so", "compiled.json"}
BATCHES = (1, 2, 64, 257)


class Small(nn.Module):
    """Weights of every kind: a table, a turned matrix, a bias of one number, a scalar, a constant, one used twice.

    `steps` is a buffer that `state_dict` leaves out.
    """

    def __init__(self, seed):
        super().__init__()
        torch.manual_seed(seed)
        self.table = nn.Embedding(40, 8)
        self.turned = nn.Parameter(torch.randn(8, 8).t())
        self.top = nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 1))
        self.register_buffer("scale", torch.rand(()) + 1)
        self.register_buffer("steps", torch.tensor([2.0, 3.0, 5.0, 7.0]), persistent=False)
        self.constant = [seed + 0.5, 1.0, 2.0, 3.0]

    def forward(self, ids, x):
        rows = self.table(ids) @ self.turned
        mixed = torch.cat([rows, x / self.steps * torch.tensor(self.constant)], 1)
        score = torch.sigmoid(self.top(mixed)).squeeze(1) * self.scale
        return {"score": score, "near": rows @ self.table.weight[:4].T, "stamp": self.scale.expand(ids.shape[0])}


def request(batch, seed=0):
    random = np.random.default_rng(seed)
    return {"ids": random.integers(0, 40, batch), "x": random.standard_normal((batch, 4)).astype(np.float32)}


@pytest.fixture(scope="module")
def place(tmp_path_factory, subprocesses):
    """The sources `one` and `two`, of one program and different weights, and `one` compiled."""
    root = tmp_path_factory.mktemp("compile")
    for seed, name in ((1, "one"), (2, "two")):
        examples = {name: torch.from_numpy(array) for name, array in request(4).items()}
        export_model(Small(seed), examples, root / name, request_inputs=["x"])
    result = run(root, "one", "-o", "json", out=root / "compiled")
    assert result.exit_code == 0, result.stderr
    (root / "answer.json").write_text(result.stdout)
    return root


@pytest.fixture
def copy(place, tmp_path):
    """A copy of the compiled snapshot, to be damaged."""
    shutil.copytree(place / "compiled", tmp_path / "copy")
    return tmp_path / "copy"


def run(place, name, *options, out):
    command = ["compile", str(place / name), "--out", str(out), "--cache", str(place / "cache"), *options]
    return CliRunner().invoke(app, command)


def manifest_of(directory):
    return SnapshotManifest.model_validate_json((directory / "snapshot.json").read_bytes())


def load(directory, **settings):
    part = TorchEngine(trusts_libraries=True).load(directory, manifest_of(directory), settings)
    part.warm_up()
    return part


def worst(left, right):
    """The largest difference over all outputs, in relation to the largest figure."""
    return max(float(np.abs(left[name] - right[name]).max() / np.abs(left[name]).max()) for name in left)


def test_a_compiled_snapshot_is_its_source_with_a_library_and_what_was_measured(place):
    answer, manifest = json.loads((place / "answer.json").read_text()), manifest_of(place / "compiled")
    source = manifest_of(place / "one")
    assert (manifest.parent, manifest.signature, manifest.engine) == (source.digest, source.signature, "torch")
    assert (
        {file.path for file in manifest.files}
        == FILES
        == {p.name for p in (place / "compiled").iterdir()} - {"snapshot.json"}
    )
    assert set(source.files) <= set(manifest.files)
    assert [d["batch"] for d in answer["differences"]] == list(BATCHES)
    assert (answer["snapshot"], answer["compiled"]) == (source.digest, manifest.digest)
    about = json.loads((place / "compiled" / "compiled.json").read_text())
    assert (about["differences"], about["flags"]) == (answer["differences"], answer["flags"])
    assert manifest.producer.keys() == {"ipnext", "torch", "compiler", "cpu", "tolerance", "difference"}


@pytest.mark.parametrize("batch", [*BATCHES, 3])
def test_its_answers_are_the_sources_within_the_tolerance(place, batch):
    given = request(batch, seed=batch)
    expected, got = load(place / "one").infer(given), load(place / "compiled", compile=True).infer(given)
    assert list(got) == list(expected)
    assert [a.shape for a in got.values()] == [a.shape for a in expected.values()]
    assert worst(expected, got) <= 1e-5


def test_without_the_setting_the_program_runs_and_no_native_code(place, monkeypatch):
    monkeypatch.setattr("serving.engines.torch.engine.read_compiled", lambda _: pytest.fail("the library was loaded"))
    given = request(5)
    expected, got = load(place / "one").infer(given), load(place / "compiled", compile=False).infer(given)
    assert all(np.array_equal(expected[name], got[name]) for name in expected)


def runs_its_library(directory):
    part = TorchEngine().load(directory, manifest_of(directory), {"compile": True})
    return isinstance(part._program, CompiledProgram)


def test_the_program_runs_unless_a_key_that_the_operator_trusts_signed_its_library(place, tmp_path, monkeypatch):
    snapshot = shutil.copytree(place / "compiled", tmp_path / "compiled")
    for name in ("trusted", "other"):
        write_key_pair(tmp_path / f"{name}.pem", tmp_path / f"{name}.pub.pem")

    def sign(name):
        digest = manifest_of(snapshot).digest
        (snapshot / SIGNATURE_FILE).write_bytes(sign_digest(digest, tmp_path / f"{name}.pem").content)

    monkeypatch.delenv("IPNEXT_NATIVE_LIBRARY_KEYS_FILE", raising=False)
    sign("trusted")
    assert not runs_its_library(snapshot)
    monkeypatch.setenv("IPNEXT_NATIVE_LIBRARY_KEYS_FILE", str(tmp_path / "trusted.pub.pem"))
    assert runs_its_library(snapshot)
    sign("other")
    assert not runs_its_library(snapshot)
    (snapshot / SIGNATURE_FILE).unlink()
    assert not runs_its_library(snapshot)
    sign("trusted")
    (tmp_path / "trusted.pub.pem").write_bytes((tmp_path / "other.pub.pem").read_bytes())
    assert not runs_its_library(snapshot), "the file of keys is read again"
    (tmp_path / "trusted.pub.pem").unlink()
    assert not runs_its_library(snapshot)


@pytest.mark.parametrize("path", ["library.so", "compiled.json", "weights.safetensors", "custom_objs_config.json"])
def test_no_library_runs_beside_files_that_its_signer_did_not_sign(place, tmp_path, monkeypatch, path):
    snapshot = shutil.copytree(place / "compiled", tmp_path / "compiled")
    write_key_pair(tmp_path / "key.pem", tmp_path / "key.pub.pem")
    signature = sign_digest(manifest_of(snapshot).digest, tmp_path / "key.pem").content
    (snapshot / SIGNATURE_FILE).write_bytes(signature)
    monkeypatch.setenv("IPNEXT_NATIVE_LIBRARY_KEYS_FILE", str(tmp_path / "key.pub.pem"))
    assert runs_its_library(snapshot)
    with (snapshot / path).open("ab") as file:
        file.write(b" ")
    with pytest.raises(ArtifactDigestMismatch, match=path):
        runs_its_library(snapshot)


def test_the_same_program_with_other_weights_is_not_compiled_again(place, tmp_path, monkeypatch):
    monkeypatch.setattr(library_cache, "_compile", lambda *_: pytest.fail("it was compiled again"))
    result = run(place, "two", "-o", "json", out=tmp_path / "out")
    assert (result.exit_code, json.loads(result.stdout)["library_known"]) == (0, True), result.stderr
    first, second = ({f.path: f.sha256 for f in manifest_of(p).files} for p in (place / "compiled", tmp_path / "out"))
    assert first["library.so"] == second["library.so"]
    assert first["weights.safetensors"] != second["weights.safetensors"]
    given = request(64)
    answers = [load(p, compile=True).infer(given) for p in (place / "compiled", tmp_path / "out")]
    assert worst(*answers) > 0.01
    assert worst(load(place / "two").infer(given), answers[1]) <= 1e-5


def test_the_library_holds_no_weight_but_is_given_each(place):
    program = read_compiled(place / "compiled")
    used = program.runner.get_constant_names_to_original_fqns().values()
    stored = {key.partition(":")[2] for key in load_file(place / "one" / "weights.safetensors")}
    assert set(used) == stored


def test_a_buffer_outside_the_state_is_compiled_and_given_to_the_library(place):
    assert "steps" not in Small(1).state_dict()
    part, given = load(place / "compiled", compile=True), request(5)
    assert isinstance(part._program, CompiledProgram)
    with torch.no_grad():
        expected = Small(1)(**{name: torch.from_numpy(array) for name, array in given.items()})
    assert worst({name: tensor.numpy() for name, tensor in expected.items()}, part.infer(given)) <= 1e-5
    used = read_compiled(place / "compiled").runner.get_constant_names_to_original_fqns().values()
    assert set(used) >= {"steps", "scale"}


def test_answers_beyond_the_tolerance_end_with_exit_status_1_and_write_nothing(place, tmp_path, monkeypatch):
    """The negative control: the library is given the weights of another snapshot."""
    assemble = compiling._assemble

    def spoil(source, built, draft):
        assemble(source, built, draft)
        shutil.copyfile(place / "two" / "weights.safetensors", draft / "weights.safetensors")

    monkeypatch.setattr(compiling, "_assemble", spoil)
    result = run(place, "one", "-o", "json", out=tmp_path / "out")
    assert (result.exit_code, json.loads(result.stdout)["compiled"]) == (1, None)
    assert "error: answers differ by more than the tolerance 1e-05; nothing was written" in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_how_an_input_lies_in_memory_changes_nothing(place):
    part, given = load(place / "compiled", compile=True), request(6)
    turned = {"ids": np.repeat(given["ids"], 2)[::2], "x": np.asfortranarray(given["x"])}
    assert not turned["ids"].flags.contiguous
    assert worst(part.infer(given), part.infer(turned)) == 0.0


def test_a_request_input_given_once_is_repeated_for_the_library(place):
    part, given = load(place / "compiled", compile=True), request(9)
    once = {**given, "x": given["x"][:1]}
    expected = part.infer({**given, "x": np.repeat(once["x"], 9, 0)})
    assert worst(expected, part.infer(once)) == 0.0


def test_an_index_beyond_its_table_is_the_requests_fault(place):
    part = load(place / "compiled", compile=True)
    for bad in (40, -1, 2**40):
        with pytest.raises(InvalidInput, match="an input holds an index beyond its table"):
            part.infer({**request(2), "ids": np.array([0, bad])})
    assert len(part.infer(request(2))["score"]) == 2


def test_its_requests_may_be_joined_and_it_answers_several_threads_at_once(place):
    part = load(place / "compiled", compile=True)
    assert part.rows_are_independent
    requests = [request(1 + seed % 7, seed) for seed in range(60)]
    expected = [part.infer(given) for given in requests]
    with ThreadPoolExecutor(6) as pool:
        got = list(pool.map(part.infer, requests * 5))
    for index, answer in enumerate(got):
        assert worst(expected[index % 60], answer) <= 1e-5
    part.close()
    with pytest.raises(LoadFailed, match="the part is closed"):
        part.infer(requests[0])


def test_a_host_serves_it_where_its_settings_ask_for_it(place, tmp_path, machine, toolbox):
    source = ingest_directory(FileArtifactStore(tmp_path / "store"), place / "compiled")
    machine.store_uri = (tmp_path / "store").as_uri()
    host = machine.start_host("compiled")
    hold = {"model": "click", "part": "dense", "engine": "torch", "snapshot": 1, "generations": (1,)}
    digest = source.manifest.digest
    host.hold(HostedSnapshot(**hold, digest=digest, uri=source.uri, settings={"compile": {"tolerance": 1e-5}}))
    assert [ready.part for ready in host.settle().ready] == ["dense"], host.state()
    answer = toolbox.decode(host.infer_part("dense", 1, request(3)))
    got = {name: tensor.data for name, tensor in answer.outputs.items()}
    assert worst(load(place / "one").infer(request(3)), got) <= 1e-5


def change(directory, **fields):
    about = json.loads((directory / "compiled.json").read_text())
    (directory / "compiled.json").write_text(json.dumps(about | fields))


@pytest.mark.parametrize(
    ("spoil", "words"),
    [
        (lambda d: change(d, flags=["sse2", "avx9999f"]), "compiled for processors with avx9999f"),
        (lambda d: change(d, torch="2.0.0"), "compiled with torch 2.0.0, this is"),
        (lambda d: change(d, program="0" * 64), "compiled from another program.json"),
        (lambda d: change(d, tolerance="small"), "compiled.json cannot be read"),
        (lambda d: (d / "compiled.json").unlink(), "compiled.json cannot be read"),
        (lambda d: (d / "library.so").write_bytes(b"\x7fELF"), "library.so cannot be loaded"),
        (
            lambda d: (d / "library.json").write_text('{"nodes": [{"node": {"target": "mine::run"}}]}'),
            "library.json calls 'mine::run', which a snapshot may not",
        ),
        (lambda d: (d / "library.json").write_text("[]"), "library.json cannot be read"),
        (lambda d: (d / "custom_objs_config.json").write_text("{}"), "may not bring objects for its library"),
    ],
)
def test_what_cannot_run_here_is_refused_and_says_why(copy, spoil, words):
    spoil(copy)
    with pytest.raises(LoadFailed, match=words):
        load(copy, compile=True)
    assert not isinstance(load(copy)._program, CompiledProgram)


def test_a_library_that_the_manifest_does_not_list_is_left_alone(place, tmp_path):
    shutil.copytree(place / "one", tmp_path / "copy")
    for name in ("library.so", "compiled.json"):
        shutil.copyfile(place / "compiled" / name, tmp_path / "copy" / name)
    assert not isinstance(load(tmp_path / "copy", compile=True)._program, CompiledProgram)


def test_a_setting_of_another_kind_is_refused(place):
    with pytest.raises(LoadFailed, match=r"settings\.compile: must be true, false or an object"):
        load(place / "compiled", compile="yes")


def test_a_machine_without_a_compiler_is_told_so(place, tmp_path, monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler")
    result = run(place, "one", out=tmp_path / "out")
    assert (result.exit_code, "compiler: 'no-such-compiler' is not installed" in result.stderr) == (2, True)
    assert list(tmp_path.iterdir()) == []


def test_a_program_that_the_compiler_refuses_leaves_nothing(place, tmp_path, monkeypatch):
    def refuse(*_, **__):
        return subprocess.CompletedProcess([], 1, "", "a warning\nerror: it has an operator without a kernel\n")

    monkeypatch.setattr(library_cache.subprocess, "run", refuse)
    monkeypatch.setattr(compiling, "compiler_version", lambda: "g++ 1")
    result = CliRunner().invoke(
        app, ["compile", str(place / "one"), "--out", str(tmp_path / "out"), "--cache", str(tmp_path / "cache")]
    )
    assert result.exit_code == 2
    assert "error: the program cannot be compiled: it has an operator without a kernel" in result.stderr
    assert [p for p in tmp_path.rglob("*") if p.name != "cache"] == []


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--tolerance", "-1"], "tolerance: must be a number >= 0, got -1.0"),
        (["--tolerance", "nan"], "tolerance: must be a number >= 0, got nan"),
        (["--cpu", "v9"], "cpu: 'v9' is no level; allowed: x86-64-v4, x86-64-v3, native"),
    ],
)
def test_a_bad_option_is_refused_by_name(place, tmp_path, options, words):
    result = run(place, "one", *options, out=tmp_path / "out")
    assert (result.exit_code, words in result.stderr) == (2, True), result.stderr


def test_a_target_that_is_not_empty_and_a_directory_without_a_snapshot_are_refused(place, tmp_path):
    (tmp_path / "file").touch()
    taken = run(place, "one", out=tmp_path)
    assert (taken.exit_code, "must not exist or be an empty directory" in taken.stderr) == (2, True)
    none = run(place, "cache", out=tmp_path / "out")
    assert (none.exit_code, "it has no snapshot.json" in none.stderr) == (2, True)
