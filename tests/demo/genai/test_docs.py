"""docs/genai-demo.md names what the demo has."""

from pathlib import Path

import pytest

from demo.genai.report import ALIKE_MARGIN
from demo.genai.story import MANIFESTS
from demo.genai.weights import ENCODER_PACKAGE, MODELS_VARIABLE, PACKAGES

ROOT = Path(__file__).parents[3]
TEXT = (ROOT / "docs" / "genai-demo.md").read_text(encoding="utf-8")
PINNED = (ROOT / "constraints-genai-demo.txt").read_text(encoding="utf-8")


def test_the_page_names_the_cache_the_manifests_and_the_margin():
    named = {f"`{MODELS_VARIABLE}`", *(f"`{path.relative_to(ROOT)}`" for path in MANIFESTS.values())}
    assert not {name for name in named if name not in TEXT}
    assert f"a cosine of {ALIKE_MARGIN:g} at least" in TEXT


@pytest.mark.parametrize("package", [name.replace("_", "-") for name in PACKAGES if name != "vllm"])
def test_each_package_is_pinned(package):
    assert f"\n{package}==" in PINNED


def test_the_terms_of_the_weights_are_named():
    assert "Gemma Terms of Use" in TEXT
    assert ENCODER_PACKAGE.replace("_", "-") in TEXT
    assert "Apache 2.0" in TEXT
