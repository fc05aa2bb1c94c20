"""Hot swaps on the whole platform under streaming clients, on real vLLM."""

import pytest

from tests.genai.support.swapping import MODEL, Bed, SwapConformance, serving_first

pytestmark = [pytest.mark.genai, pytest.mark.timeout(1800)]


@pytest.fixture(scope="module")
def first(vllm_platform, llamas):
    with serving_first(Bed(vllm_platform, ("vllm.entrypoints", f"--served-model-name {MODEL}"), llamas)) as bed:
        yield bed


class TestVllm(SwapConformance):
    """Engines as users have them."""
