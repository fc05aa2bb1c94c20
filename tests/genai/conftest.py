"""Checkpoints in a store, hosts that end with their test, platforms."""

import json

import pytest

from tests.forked_programs import ForkServer
from tests.genai.support.checkpoints import adapter_tensors, write_adapter, write_bert, write_llama, write_vllm_adapter
from tests.genai.support.hosts import HOST, Shelf, Yard
from tests.genai.support.platforms import platform_with
from tests.genai.support.programs import vllm_programs
from tests.genai.support.tiny_models import write_tiny_llama


@pytest.fixture(scope="session")
def shelf(tmp_path_factory):
    """Checkpoints that only the mock engine can serve: 1 and 2 generate, 3 embeds.

    11 and 12 are adapters on 1 and 2, 13 on others.
    """
    shelf = Shelf(tmp_path_factory.mktemp("shelf"))
    for number in (1, 2):
        shelf.publish(number, write_llama(shelf.root / f"hf-{number}", seed=number))
    shelf.publish(3, write_bert(shelf.root / "hf-3"))
    for number in (11, 12):
        tensors = adapter_tensors(value=number)
        shelf.publish(number, write_adapter(shelf.root / f"hf-{number}", tensors=tensors))
    shelf.publish(13, write_adapter(shelf.root / "hf-13", tensors=adapter_tensors(inputs=9)))
    return shelf


@pytest.fixture(scope="session")
def host_forks(subprocesses):
    """Hosts with the mock engine are forks; those of vLLM and `ipnext dev` are interpreters of their own."""
    forks = ForkServer((HOST,))
    yield forks
    forks.close()


@pytest.fixture
def yard(tmp_path, shelf, host_forks):
    yard = Yard(tmp_path, shelf.store, host_forks)
    yield yard
    yard.close()


@pytest.fixture(scope="module")
def vllm_platform(tmp_path_factory, vllm, vllm_cache, lasting, platforms):
    """A platform whose hosts run vLLM, for models of many names: whoever publishes one deletes it."""
    root = tmp_path_factory.mktemp("vllm-platform")
    shared = {"VLLM_CACHE_ROOT": str(vllm_cache), "IPNEXT_AGENT_HOST_WRITABLE": json.dumps([str(vllm_cache)])}
    return lasting.get("vllm", lambda: platform_with(root, IPNEXT_VLLM_PYTHON=vllm, **shared))


@pytest.fixture(scope="module")
def programs(tmp_path_factory, vllm, lasting):
    """Runs programs on vLLM's modules."""
    directory = tmp_path_factory.mktemp("programs")
    return lasting.get("programs", lambda: vllm_programs(vllm, directory))


@pytest.fixture(scope="session")
def llamas(tmp_path_factory):
    """Seed -> the directory of a tiny random Llama that vLLM serves."""
    root = tmp_path_factory.mktemp("llamas")
    return {seed: write_tiny_llama(root / f"llama-{seed}", seed=seed) for seed in (1, 2)}


@pytest.fixture(scope="session")
def tiny(tmp_path_factory, llamas):
    """A store with these Llamas 1 and 2, and adapters 11 and 12 that change what they say."""
    shelf = Shelf(tmp_path_factory.mktemp("tiny"))
    for number, directory in llamas.items():
        shelf.publish(number, directory)
    for number in (11, 12):
        shelf.publish(number, write_vllm_adapter(shelf.root / f"hf-{number}", seed=number))
    return shelf
