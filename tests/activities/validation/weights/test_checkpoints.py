"""Validation of checkpoints.

Refused by the headers of their weights, with the tensor's name, before any engine sees them.
"""

import hashlib
from dataclasses import replace

import pytest

from activities.validation.activities import BUILT_IN
from activities.validation.runs import run_validators
from activities.validation.weights.checkpoints import check_checkpoints
from ipnext.artifacts.checkpoints.checkpoint_import import describe_checkpoint
from ipnext.artifacts.checkpoints.reader import LocalFiles, read_checkpoint
from ipnext.model.lifecycle.status import Reason
from ipnext.model.registry.checkpoint import Checkpoint
from ipnext.model.registry.registry import SnapshotSource
from tests.activities.validation.chat_templates import CHATML
from tests.genai.support.checkpoints import llama_tensors, stored, write_llama

pytestmark = pytest.mark.trust

HARDWARE = [{"kind": "cpu", "units": 1, "qps": 1}]


@pytest.fixture
def chat(house, tmp_path):
    """Publish a checkpoint of two files of weights."""

    def publish(name="hf", **config):
        directory = write_llama(tmp_path / name, **{"shards": 2, **config})
        manifest = describe_checkpoint(directory).manifest
        return stored(house.artifacts, directory, manifest)

    return publish


def part_of(**settings):
    parts = [{"name": "llm", "engine": "vllm", "hardware": HARDWARE, "settings": settings}]
    return {"parts": parts, "graph": None, "task": "generation"}


def test_a_checkpoint_that_was_made_to_generate_may_embed_alone(candidate, chat):
    """As Qwen3-Embedding is: a causal language model, run with `runner: pooling`, in a model of this one part."""
    found = candidate(spec=part_of(runner="pooling") | {"task": "embedding"}, llm=chat())
    found = replace(found, snapshots={"llm": found.snapshots["llm"]})
    assert [result.message for result in run_validators(found, BUILT_IN) if not result.passed] == []
    assert found.graph.outputs == {"embedding": "llm.embedding"}


def only(results):
    (result,) = results
    return result


@pytest.fixture
def judged(candidate):
    """The one result of the check on a snapshot, run with settings; `fields` replace those of the candidate."""

    def judge(source, fields=None, **settings):
        found = candidate(spec=part_of(**settings), llm=source)
        return only(check_checkpoints(replace(found, **fields or {})))

    return judge


def test_a_checkpoint_that_is_whole_passes_all_checks(candidate, chat):
    found = candidate(spec=part_of(maxModelLen=64, tensorParallelSize=2), llm=chat())
    kept = {part: found.snapshots[part] for part in ("llm",)}
    results = tuple(run_validators(replace(found, snapshots=kept), BUILT_IN))
    assert [result for result in results if not result.passed] == []
    assert "LlamaForCausalLM" in only([result for result in results if result.check == "checkpoint"]).message


def test_parts_of_other_engines_are_not_looked_at(candidate):
    assert list(check_checkpoints(candidate())) == []


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        ({"maxModelLen": 65}, "maxModelLen: 65 is more than the 64 positions"),
        ({"tensorParallelSize": 3}, "tensorParallelSize: 3 does not divide the 4 attention heads"),
    ],
)
def test_settings_beyond_the_checkpoint_are_refused(judged, chat, settings, told):
    result = judged(chat(), **settings)
    assert (result.passed, result.reason) == (False, Reason.SCHEMA_MISMATCH)
    assert told in result.message


def test_weights_that_are_not_those_of_the_configuration_are_refused_by_the_tensors_name(house, judged, tmp_path):
    directory = write_llama(tmp_path / "hf")
    manifest = describe_checkpoint(directory).manifest
    tensors = llama_tensors()
    tensors["model.layers.1.mlp.up_proj.weight"] = tensors["model.layers.1.mlp.up_proj.weight"][:-1]
    other = write_llama(tmp_path / "other", tensors=tensors)
    files = {file.path: file for file in manifest.files}
    wrong = hashed(other / "model.safetensors", files["model.safetensors"])
    changed = manifest.model_copy(update={"files": tuple((files | {"model.safetensors": wrong}).values())})
    result = judged(stored(house.artifacts, other, changed))
    assert not result.passed
    assert result.message == "part 'llm': snapshot.json says checkpoint.parameters 1176; the files say 1168"
    told = changed.model_copy(update={"checkpoint": true_facts(other)})
    assert (
        "'model.layers.1.mlp.up_proj.weight' has shape [11, 8]" in judged(stored(house.artifacts, other, told)).message
    )


def hashed(path, file):
    content = path.read_bytes()
    return file.model_copy(update={"sha256": hashlib.sha256(content).hexdigest(), "size_bytes": len(content)})


def true_facts(directory) -> Checkpoint:
    return read_checkpoint(LocalFiles(directory)).facts


def pair_of():
    parts = [
        {"name": role, "engine": "vllm", "hardware": HARDWARE, "settings": {"kvTransfer": transfer(role)}}
        for role in ("prefill", "decode")
    ]
    return {"parts": parts, "graph": None, "task": "generation"}


def transfer(role):
    return {"connector": "example", "role": role}


def test_prefill_and_decode_hold_one_checkpoint(candidate, chat):
    one, other = chat("one", seed=1), chat("other", seed=2)
    assert all(result.passed for result in check_checkpoints(candidate(spec=pair_of(), prefill=one, decode=one)))
    *_, refused = check_checkpoints(candidate(spec=pair_of(), prefill=one, decode=other))
    assert (refused.passed, refused.reason, refused.subject) == (False, Reason.SCHEMA_MISMATCH, "decode")
    for part, source in (("prefill", one), ("decode", other)):
        assert f"snapshot 1 of '{part}' ({source.manifest.digest[:12]})" in refused.message
    assert "--part prefill,decode=DIR" in refused.message


def test_a_snapshot_that_tells_nothing_of_its_checkpoint_is_refused(house, judged, chat, tmp_path):
    source = chat()
    silent = source.manifest.model_copy(update={"checkpoint": None})
    result = judged(SnapshotSource(manifest=silent, uri=house.artifacts.commit(silent)))
    assert "ipnext import-checkpoint" in result.message


@pytest.fixture
def with_template(house, tmp_path):
    """Publish a checkpoint with this chat template."""

    def publish(text):
        directory = write_llama(tmp_path / "hf")
        (directory / "chat_template.jinja").write_text(text)
        return stored(house.artifacts, directory)

    return publish


@pytest.mark.usefixtures("subprocesses")
def test_a_chat_template_within_the_limits_passes(judged, with_template):
    result = judged(with_template(CHATML))
    assert (result.passed, "LlamaForCausalLM" in result.message) == (True, True)


@pytest.mark.usefixtures("subprocesses")
def test_a_chat_template_beyond_the_limits_is_refused_with_its_file_and_line(judged, with_template):
    result = judged(with_template("a\n{% include 'other.jinja' %}"))
    assert (result.passed, result.reason) == (False, Reason.UNSAFE_FORMAT)
    assert result.message == (
        "part 'llm': chat_template.jinja: line 2: include of another template; allowed: macros of its own"
    )


def test_templates_are_rendered_once_for_parts_of_one_checkpoint(candidate, with_template, monkeypatch):
    seen = []

    def judge(templates, special_tokens, beat):
        seen.append([template.place for template in templates])
        return "is refused"

    one = with_template("a")
    found = replace(candidate(spec=pair_of(), prefill=one, decode=one), find_template_fault=judge)
    results = list(check_checkpoints(found))
    assert [result.message for result in results] == ["part 'prefill': is refused", "part 'decode': is refused"]
    assert seen == [["chat_template.jinja"]]


def test_templates_of_a_checkpoint_that_is_refused_anyway_are_not_rendered(judged, with_template):
    unasked = {"find_template_fault": lambda *_: pytest.fail("rendered")}
    result = judged(with_template("a"), unasked, maxModelLen=65)
    assert result.reason is Reason.SCHEMA_MISMATCH


def test_a_tokenizer_file_that_is_too_large_is_refused(house, judged, tmp_path):
    directory = write_llama(tmp_path / "hf")
    manifest = describe_checkpoint(directory).manifest
    files = tuple(
        file.model_copy(update={"size_bytes": 65 << 20}) if file.path == "tokenizer.json" else file
        for file in manifest.files
    )
    source = stored(house.artifacts, directory, manifest)
    grown = source.model_copy(update={"manifest": manifest.model_copy(update={"files": files})})
    result = judged(grown)
    assert (result.passed, result.reason) == (False, Reason.SCHEMA_MISMATCH)
    assert result.message == "part 'llm': tokenizer.json: 68157440 bytes are too many; allowed: 67108864"
