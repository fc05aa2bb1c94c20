"""docs/gates.md and the example manifest tell of the limits that there are."""

import re
from pathlib import Path

import pytest
from pydantic.alias_generators import to_camel

from activities.transition.gate.verdict import EARLY_REQUESTS
from activities.transition.gate.window import MAX_WINDOW_BYTES
from ipnext.model.gate.distributions import _Z
from ipnext.model.gate.gate import ENOUGH_REQUESTS, GateSpec
from ipnext.model.gate.sketch import PREDICTION_BOUNDS
from ipnext.model.manifest.parser import parse_manifests
from serving.metrics.prediction_sketches import MAX_OUTPUTS, MAX_VALUES, SAMPLE_SECONDS

ROOT = Path(__file__).parents[2]
TEXT = (ROOT / "docs" / "gates.md").read_text(encoding="utf-8")


def test_every_limit_has_a_line_and_no_line_is_made_up():
    fields = re.findall(r"^\| `(\w+)` \| [^|]+ \| [^|]+ \|$", TEXT, flags=re.MULTILINE)
    assert fields == [to_camel(name) for name in GateSpec.model_fields]


def test_the_defaults_are_the_documented_ones():
    assert f"| `waitSeconds` | {GateSpec().wait_seconds:g} |" in TEXT
    assert f"| `onTooFew` | {GateSpec().on_too_few} |" in TEXT
    assert GateSpec() == GateSpec(max_latency_ms={"p50": None, "p99": None}), "nothing else has a default"


@pytest.mark.parametrize(
    "words",
    [
        f"{len(PREDICTION_BOUNDS) + 1} buckets",
        f"{ENOUGH_REQUESTS} if latency",
        f"at least {EARLY_REQUESTS} answers",
        f"{_Z} times",
        f"one answer of a generation in {SAMPLE_SECONDS * 1000:g} ms",
        f"at most {MAX_VALUES} numbers",
        f"{MAX_WINDOW_BYTES // 1024} KiB",
        {4: "first four"}[MAX_OUTPUTS],
    ],
)
def test_the_figures_in_force_are_the_documented_ones(words):
    assert words in TEXT


def test_the_example_is_a_manifest_with_every_kind_of_limit():
    [manifest] = parse_manifests((ROOT / "examples" / "gated-ranker.yaml").read_text(encoding="utf-8"))
    gate = manifest.spec.rollout.gate
    assert gate.compares
    assert gate.max_latency_ms.p99 == 80
    assert gate.needed_answers == 500
