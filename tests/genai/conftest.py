"""Checkpoints in a store, hosts that end with their test, and vLLM where it is installed."""

import os
import subprocess

import pytest

from ipnext.errors import LoadFailed
from serving.genai.interpreter import vllm_python
from tests.genai.checkpoints import adapter_tensors, write_adapter, write_bert, write_llama, write_vllm_adapter
from tests.genai.hosts import Shelf, Yard
from tests.genai.platforms import platform_with
from tests.genai.tiny_models import tiny_llama

NEEDS_VLLM = "needs vLLM: make setup-genai"


@pytest.fixture(scope="session")
def shelf(tmp_path_factory):
    """Checkpoints that only the mock engine can serve: 1 and 2 generate, 3 embeds; 11 and 12 are adapters on 1 and 2, 13 on others."""
    shelf = Shelf(tmp_path_factory.mktemp("shelf"))
    for number in (1, 2):
        shelf.publish(number, write_llama(shelf.root / f"hf-{number}", seed=number))
    shelf.publish(3, write_bert(shelf.root / "hf-3"))
    for number in (11, 12):
        tensors = adapter_tensors(value=number)
        shelf.publish(number, write_adapter(shelf.root / f"hf-{number}", tensors=tensors))
    shelf.publish(13, write_adapter(shelf.root / "hf-13", tensors=adapter_tensors(inputs=9)))
    return shelf


@pytest.fixture
def yard(tmp_path, shelf):
    yard = Yard(tmp_path, shelf.store)
    yield yard
    yard.close()


@pytest.fixture(scope="session")
def vllm():
    """The interpreter that has vLLM."""
    try:
        python = vllm_python(os.environ)
    except LoadFailed:
        pytest.skip(NEEDS_VLLM)
    look = [python, "-c", "import importlib.util as u, sys; sys.exit(u.find_spec('vllm') is None)"]
    if subprocess.run(look, check=False).returncode:
        pytest.skip(NEEDS_VLLM)
    return python


@pytest.fixture(scope="session")
def llamas(tmp_path_factory, vllm):
    """Seed -> the directory of a tiny random Llama that vLLM serves."""
    root = tmp_path_factory.mktemp("llamas")
    return {seed: tiny_llama(vllm, root / f"llama-{seed}", seed=seed) for seed in (1, 2)}


@pytest.fixture(scope="module")
def vllm_platform(tmp_path_factory, vllm, lasting):
    """A platform whose hosts run vLLM, for models of many names: whoever publishes one deletes it."""
    root = tmp_path_factory.mktemp("vllm-platform")
    return lasting.get("vllm", lambda: platform_with(root, IPNEXT_VLLM_PYTHON=vllm))


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, llamas):
    """A store with these Llamas 1 and 2, and adapters 11 and 12 that change what they say."""
    shelf = Shelf(tmp_path_factory.mktemp("tiny"))
    for number, directory in llamas.items():
        shelf.publish(number, directory)
    for number in (11, 12):
        shelf.publish(number, write_vllm_adapter(shelf.root / f"hf-{number}", seed=number))
    return shelf
