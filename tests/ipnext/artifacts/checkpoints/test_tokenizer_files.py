"""Tokenizer files and chat templates of a checkpoint have largest sizes; templates are found as transformers does."""

import json

import pytest

from ipnext.artifacts.checkpoints import tokenizer_files
from ipnext.artifacts.checkpoints.checkpoint_import import describe_checkpoint, import_checkpoint
from ipnext.artifacts.checkpoints.reader import LocalFiles, read_checkpoint
from ipnext.artifacts.checkpoints.tokenizer_files import LARGEST_TEMPLATE_BYTES, MOST_TEMPLATES, size_fault
from ipnext.errors import InvalidInput
from tests.genai.support.checkpoints import write_adapter, write_llama

pytestmark = pytest.mark.trust

MIB = 1 << 20


def write(directory, files):
    for name, content in files.items():
        (directory / name).parent.mkdir(exist_ok=True)
        text = content if isinstance(content, str) else json.dumps(content)
        (directory / name).write_text(text)
    return directory


@pytest.fixture
def checkpoint(tmp_path):
    """A checkpoint with further files, by their names."""
    return lambda files: write(write_llama(tmp_path / "hf"), files)


def large(directory, name, size):
    """Add a file of a size without its bytes."""
    (directory / name).parent.mkdir(exist_ok=True)
    with (directory / name).open("wb") as stream:
        stream.truncate(size)


@pytest.mark.parametrize(
    ("path", "most"),
    [
        ("chat_template.jinja", 256 << 10),
        ("additional_chat_templates/tool_use.jinja", 256 << 10),
        ("additional_chat_templates/.tool_use.jinja", 256 << 10),
        ("chat_template.json", 4 * MIB),
        ("processor_config.json", 4 * MIB),
        ("special_tokens_map.json", 4 * MIB),
        ("tokenizer_config.json", 16 * MIB),
        ("added_tokens.json", 16 * MIB),
        ("tokenizer.json", 64 * MIB),
        ("tokenizer.4.0.0.json", 64 * MIB),
        ("tekken.json", 64 * MIB),
        ("vocab.json", 64 * MIB),
        ("vocab.txt", 64 * MIB),
        ("merges.txt", 64 * MIB),
        ("tokenizer.model", 64 * MIB),
        ("qwen.tiktoken", 64 * MIB),
        ("nested/tokenizer.model", 64 * MIB),
    ],
)
def test_tokenizer_files_and_templates_have_a_largest_size(path, most):
    assert size_fault(path, most) is None
    assert size_fault(path, most + 1) == f"{path}: {most + 1} bytes are too many; allowed: {most}"


def test_other_files_have_no_size_of_a_tokenizer_file():
    assert size_fault("model.safetensors", 10**12) is None


@pytest.mark.parametrize("name", ["tokenizer.model", "chat_template.jinja", "merges.txt", "tokenizer_config.json"])
def test_an_import_refuses_a_file_that_is_too_large_and_writes_nothing(checkpoint, tmp_path, name):
    directory = checkpoint({})
    large(directory, name, 64 * MIB + 1)
    with pytest.raises(InvalidInput, match=rf"{name}: 67108865 bytes are too many; allowed: \d+"):
        import_checkpoint(directory, tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_an_adapter_has_the_same_limits(tmp_path):
    directory = write_adapter(tmp_path / "lora")
    large(directory, "tokenizer.json", 64 * MIB + 1)
    with pytest.raises(InvalidInput, match=r"tokenizer.json: 67108865 bytes are too many; allowed: 67108864"):
        describe_checkpoint(directory)


def found(directory):
    return {template.place: template.text for template in read_checkpoint(LocalFiles(directory)).templates}


def test_templates_are_found_in_all_places_that_transformers_reads(checkpoint):
    assert found(
        checkpoint(
            {
                "chat_template.jinja": "a",
                "additional_chat_templates/tool_use.jinja": "b",
                "chat_template.json": {"chat_template": "c"},
                "processor_config.json": {"chat_template": {"default": "d"}},
                "tokenizer_config.json": {"chat_template": [{"name": "rag", "template": "e"}]},
                "other.jinja": "not read",
            }
        )
    ) == {
        "chat_template.jinja": "a",
        "additional_chat_templates/tool_use.jinja": "b",
        "chat_template.json: chat_template": "c",
        "processor_config.json: chat_template 'default'": "d",
        "tokenizer_config.json: chat_template 'rag'": "e",
    }


def test_a_checkpoint_without_templates_is_read(checkpoint):
    assert found(checkpoint({"tokenizer_config.json": {"chat_template": None}})) == {}


def test_special_tokens_are_read_in_both_forms(checkpoint):
    config = {"bos_token": "<s>", "eos_token": {"content": "</s>"}, "pad_token": None, "model_max_length": 9}
    directory = checkpoint({"tokenizer_config.json": config, "special_tokens_map.json": {"unk_token": "<unk>"}})
    tokens = read_checkpoint(LocalFiles(directory)).special_tokens
    assert tokens == {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}


@pytest.mark.parametrize(
    ("value", "told"),
    [
        (7, r"tokenizer_config.json: chat_template: must be a text, a list of .* or an object, got a int"),
        ([{"template": "x"}], r"tokenizer_config.json: chat_template: entry 0 must be an object with the texts `name`"),
        (["x"], r"tokenizer_config.json: chat_template: entry 0 must be an object"),
        ([{"name": "a", "template": 7}], r"tokenizer_config.json: chat_template 'a': must be a text, got a int"),
        ({"a": ["x"]}, r"tokenizer_config.json: chat_template 'a': must be a text, got a list"),
        (
            "x" * (LARGEST_TEMPLATE_BYTES + 1),
            r"tokenizer_config.json: chat_template: 262145 bytes are too many; allowed: 262144",
        ),
        (
            {"a": "é" * (LARGEST_TEMPLATE_BYTES // 2 + 1)},
            r"tokenizer_config.json: chat_template 'a': 262146 bytes are too many; allowed: 262144",
        ),
        (
            dict.fromkeys(map(str, range(MOST_TEMPLATES + 1)), "x"),
            r"chat_template '32': with it the checkpoint has more chat templates than allowed: 32",
        ),
    ],
)
def test_a_template_of_another_form_is_refused_with_its_place(checkpoint, value, told):
    with pytest.raises(InvalidInput, match=told):
        describe_checkpoint(checkpoint({"tokenizer_config.json": {"chat_template": value}}))


def test_a_template_that_is_no_utf8_is_refused(checkpoint):
    directory = checkpoint({})
    (directory / tokenizer_files.TEMPLATE_FILE).write_bytes(b"hello \xff")
    with pytest.raises(InvalidInput, match=r"chat_template.jinja: is not UTF-8: invalid start byte at byte 6"):
        describe_checkpoint(directory)


def test_no_more_templates_are_read_than_allowed(checkpoint):
    """A snapshot may have ten thousand files, and a worker reads many snapshots at once."""
    directory, opened = checkpoint({}), []
    folder = directory / tokenizer_files.TEMPLATE_FOLDER
    folder.mkdir()
    for number in range(MOST_TEMPLATES + 100):
        (folder / f"{number:03}.jinja").write_text("x")

    class Counted(LocalFiles):
        def open(self, path):
            opened.append(path)
            return super().open(path)

    with pytest.raises(InvalidInput, match=r"/032.jinja: with it the checkpoint has more"):
        read_checkpoint(Counted(directory))
    assert sum(path.endswith(".jinja") for path in opened) == MOST_TEMPLATES + 1
