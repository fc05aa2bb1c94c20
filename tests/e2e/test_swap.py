"""Hot swaps on the whole platform under streaming clients, with engines that stand in for vLLM."""

import pytest

from tests.genai.support.checkpoints import write_llama
from tests.genai.support.swapping import MODEL, Bed, SwapConformance, serving_first

pytestmark = pytest.mark.e2e


@pytest.fixture(scope="module")
def first(bare, tmp_path_factory):
    root = tmp_path_factory.mktemp("swapping")
    checkpoints = {seed: write_llama(root / f"llama-{seed}", seed=seed, max_position_embeddings=512) for seed in (1, 2)}
    with serving_first(Bed(bare, ("mock_engine.py", f"--served {MODEL}"), checkpoints)) as bed:
        yield bed


class TestStandIn(SwapConformance):
    """As on real vLLM."""
